//! What a datanode shows over HTTP.

use std::sync::Arc;

use cairn_ops::http::Role;
use cairn_ops::metrics::{Page, Source};

use crate::scrub::Scrubber;
use crate::server::Shared;

/// A datanode as it is seen from outside.
pub struct Site {
    /// Its data plane.
    pub shared: Arc<Shared>,
    /// Its scrubber.
    pub scrubber: Arc<Scrubber>,
}

impl Role for Site {
    fn ready(&self) -> Result<(), String> {
        if !self.shared.counters.is_attending() {
            return Err("no leading namenode is attended".into());
        }
        Ok(())
    }
}

impl Source for Site {
    fn metrics(&self, page: &mut Page<'_>) {
        let ready = if self.ready().is_ok() { 1.0 } else { 0.0 };
        page.gauge("cairn_datanode_ready", "Whether it attends the leading namenode", ready);
        page.gauge(
            "cairn_datanode_connections",
            "Open connections of the data plane",
            self.shared.connections() as f64,
        );
        self.traffic(page);
        self.disks(page);
        self.verified(page);
    }
}

impl Site {
    fn traffic(&self, page: &mut Page<'_>) {
        let counters = &self.shared.counters;
        let traffic = counters.traffic();
        page.counter("cairn_datanode_read_bytes", "Bytes sent to readers", traffic.bytes_read);
        page.counter("cairn_datanode_written_bytes", "Bytes taken from writers", traffic.bytes_written);
        page.counter(
            "cairn_datanode_lent_replicas",
            "Replicas whose files were lent to clients on this host",
            counters.loans(),
        );
        page.histogram(
            "cairn_datanode_read_duration_seconds",
            "From a read's request to its last byte",
            &counters.reads,
        );
        page.histogram(
            "cairn_datanode_append_duration_seconds",
            "To verify, forward and write an append",
            &counters.appends,
        );
        page.histogram(
            "cairn_datanode_sync_duration_seconds",
            "To make a chunk that is being written durable",
            &counters.syncs,
        );
        let (reads, appends) = counters.refused();
        let series = [("read", reads), ("append", appends)];
        let series = series.map(|(kind, count)| (vec![("operation", kind.to_owned())], count));
        page.counters("cairn_datanode_refused", "Reads and appends that were refused", series);
    }

    fn disks(&self, page: &mut Page<'_>) {
        let store = &self.shared.store;
        let space = store.space();
        page.gauge("cairn_datanode_replicas", "Replicas held", space.replicas as f64);
        page.gauge("cairn_datanode_used_bytes", "Bytes that replicas take", space.used as f64);
        page.gauge("cairn_datanode_capacity_bytes", "Bytes that replicas may take", space.capacity as f64);
        page.gauge(
            "cairn_datanode_available_bytes",
            "Bytes that new replicas may take",
            space.available as f64,
        );
        page.gauge("cairn_datanode_failed_directories", "Directories given up", f64::from(space.failed_dirs));
    }

    fn verified(&self, page: &mut Page<'_>) {
        let scrub = self.scrubber.info();
        let (verified, left) = if scrub.left > 0 { (scrub.verified, scrub.left) } else { (0, 0) };
        page.gauge("cairn_datanode_scrub_verified", "Replicas verified in this pass", verified as f64);
        page.gauge("cairn_datanode_scrub_left", "Replicas still to verify in this pass", left as f64);
        page.gauge(
            "cairn_datanode_scrub_full_pass_timestamp_seconds",
            "When all replicas had last been verified, in seconds since 1970; 0: never",
            scrub.full_pass_ns as f64 / 1e9,
        );
        page.counter("cairn_datanode_bad_replicas_found", "Bad replicas found, over all starts", scrub.found);
        page.counter("cairn_datanode_bad_replicas_mended", "Of those, replaced or given up", scrub.mended);
        let bad = scrub.found.saturating_sub(scrub.mended);
        page.gauge("cairn_datanode_bad_replicas", "Bad replicas now", bad as f64);
    }
}
