//! A cluster together with its clients.

use std::sync::Arc;

use crate::nodes::{Nodes, Role, Shape};
use crate::work::Place;
use crate::work::library::Library;
use crate::work::mounted::Mounted;

pub struct Stage {
    pub nodes: Nodes,
    pub libraries: Vec<Arc<Library>>,
    /// The mounts, then the clients of the library.
    pub places: Vec<Arc<dyn Place>>,
}

impl Stage {
    /// Starts everything.
    pub fn set(shape: Shape) -> Stage {
        let nodes = Nodes::up(shape);
        let mut places: Vec<Arc<dyn Place>> = Vec::new();
        for name in nodes.names(Role::Mount) {
            places.push(Arc::new(Mounted::new(
                &name,
                nodes.mount_point(&name),
                nodes.node(&name).life.clone(),
            )));
        }
        let connect = |client: usize| {
            let host = nodes.network.host(nodes.client_host(client));
            Arc::new(Library::connect(
                &format!("library{}", client + 1),
                host,
                nodes.namenodes(),
                shape.give_up,
            ))
        };
        let libraries: Vec<Arc<Library>> = (0..shape.clients - 1).map(connect).collect();
        places.extend(libraries.iter().map(|library| Arc::clone(library) as Arc<dyn Place>));
        Stage { nodes, libraries, places }
    }
}
