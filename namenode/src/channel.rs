//! Connections to other namenodes.

use std::sync::Arc;
use std::time::Duration;

use cairn_host::net::{Connector, Network};
use cairn_proto::control::namenode_client::NamenodeClient;
use cairn_proto::limits::MAX_MESSAGE;
use cairn_proto::{Error, ErrorCode};
use tonic::transport::{Channel, Endpoint};

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
const KEEPALIVE: Duration = Duration::from_secs(1);

/// A channel to `address` (host:port) that connects when it is used and notices a silent peer in two seconds.
pub fn connect_lazily(network: &Arc<dyn Network>, address: &str) -> Result<Channel, Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| ErrorCode::Invalid.because(format!("address {address}: {error}")))?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
        .connect_with_connector_lazy(Connector(network.clone())))
}

/// A client of the namenode at `address`.
pub fn namenode(network: &Arc<dyn Network>, address: &str) -> Result<NamenodeClient<Channel>, Error> {
    let client = NamenodeClient::new(connect_lazily(network, address)?);
    Ok(client.max_decoding_message_size(MAX_MESSAGE))
}
