//! What a mount shows over HTTP.

use std::sync::Weak;

use cairn_ops::http::Role;
use cairn_ops::metrics::{Page, Source};

use crate::view::View;

/// A mount as it is seen from outside. It does not keep the mount alive.
pub(crate) struct Site {
    pub(crate) view: Weak<View>,
}

impl Role for Site {
    fn ready(&self) -> Result<(), String> {
        match self.view.upgrade() {
            Some(_) => Ok(()),
            None => Err("it is unmounted".into()),
        }
    }
}

impl Source for Site {
    fn metrics(&self, page: &mut Page<'_>) {
        let Some(view) = self.view.upgrade() else { return };
        view.counted.write(page);
        let done = view.cluster.metrics();
        page.counter(
            "cairn_client_read_bytes",
            "Bytes received from datanodes and verified",
            done.bytes_read,
        );
        page.counter(
            "cairn_client_local_read_bytes",
            "Bytes read from replicas' files on this host and verified",
            done.bytes_read_here,
        );
        page.counter("cairn_client_written_bytes", "Bytes that all replicas have", done.bytes_written);
        page.gauge(
            "cairn_client_dirty_bytes",
            "Written bytes that wait for their replicas",
            done.bytes_waiting as f64,
        );
        let limit = done.bytes_waiting_limit as f64;
        page.gauge("cairn_client_dirty_limit_bytes", "Bytes that may wait before writers do", limit);
        page.gauge(
            "cairn_client_layout_cache_bytes",
            "Memory for where files lie, about",
            done.layout_bytes as f64,
        );
        page.gauge(
            "cairn_client_delegated_inodes",
            "Inodes in directories that are this mount's own",
            done.delegated_inodes as f64,
        );
        page.gauge(
            "cairn_client_deeds_waiting",
            "Changes in them that the namenodes do not know yet",
            done.deeds_waiting as f64,
        );
        page.counter("cairn_client_deeds", "Changes made in them", done.deeds);
        page.counter(
            "cairn_client_chain_failures",
            "Chains given up for a datanode's failure",
            done.chain_failures,
        );
        page.counter("cairn_client_leader_changes", "Moves to another namenode", done.leader_changes);
        page.counter("cairn_client_retries", "Calls, appends and reads sent again", done.retries);
        page.counter("cairn_client_hedged_reads", "Reads that asked a second replica", done.hedged_reads);
    }
}
