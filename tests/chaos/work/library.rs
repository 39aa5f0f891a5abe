//! The client library as a way into the cluster, from a host of its own.

use std::future::Future;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use cairn_client::{Cluster, Config, Error, ErrorCode, File, fs};
use cairn_proto::ROOT_INODE;
use tokio::runtime::Runtime;

use super::{Fault, Moment, Place};
use crate::network::Namespace;

pub struct Library {
    name: String,
    runtime: Runtime,
    cluster: Cluster,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        match error.code {
            ErrorCode::NotFound | ErrorCode::Exists | ErrorCode::NotEmpty => {
                Fault::Refused(error.to_string())
            }
            _ => Fault::Unknown(error.to_string()),
        }
    }
}

fn root() -> fs::Cred {
    fs::Cred { uid: 0, gid: 0, groups: Vec::new() }
}

fn at(path: &str) -> Option<fs::NodeRef> {
    Some(fs::NodeRef { inode: ROOT_INODE, path: path.to_owned().into_bytes().into() })
}

fn made(path: &str) -> fs::CreateFile {
    fs::CreateFile { at: at(path), mode: 0o644, ..Default::default() }
}

impl Library {
    /// Connects from a host. All threads of the client live there.
    pub fn connect(name: &str, namespace: &Namespace, namenodes: Vec<String>, give_up: u64) -> Library {
        let place = namespace.clone();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .on_thread_start(move || place.enter().expect("the namespace can be entered"))
            .build()
            .expect("a runtime");
        let config = Config {
            namenodes,
            name: format!("chaos:{name}"),
            operation_timeout: Duration::from_secs(give_up),
            lane_idle: Duration::from_secs(5),
            ..Config::default()
        };
        let cluster =
            run(&runtime, async move { Cluster::connect(config).await }).expect("the cluster is there");
        Library { name: name.into(), runtime, cluster }
    }

    fn run<T, F>(&self, work: impl FnOnce(Cluster) -> F) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        run(&self.runtime, work(self.cluster.clone()))
    }

    /// Ends the session in order.
    pub fn close(&self) {
        let _ = self.run(|cluster| async move { cluster.close().await });
    }
}

/// Runs a future on the runtime's threads, whatever thread asks: only they are on the right host.
fn run<T: Send + 'static>(runtime: &Runtime, work: impl Future<Output = T> + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    runtime.spawn(async move { sender.send(work.await) });
    receiver.recv().expect("the runtime runs it to its end")
}

async fn write(file: &File, content: Bytes) -> Result<(), Fault> {
    let written = async {
        file.write_at(0, content).await?;
        file.sync().await
    };
    written.await.map(drop).map_err(|error| Fault::from(error).halfway())
}

async fn opened(cluster: &Cluster, ask: fs::CreateFile) -> Result<File, Fault> {
    let attr = cluster.create(&root(), ask).await?.attr.ok_or(Fault::Unknown("no attributes".into()))?;
    Ok(cluster.open(&root(), attr))
}

impl Place for Library {
    fn name(&self) -> &str {
        &self.name
    }

    fn store(&self, path: &str, content: &[u8]) -> Result<(), Fault> {
        let (ask, content) =
            (fs::CreateFile { truncate: true, ..made(path) }, Bytes::copy_from_slice(content));
        // Small files go in whole, large ones in pieces.
        let small = content.len() < 32 << 10;
        self.run(move |cluster| async move {
            if small {
                return Ok(cluster.put_small(&root(), ask, content, None, true).await.map(drop)?);
            }
            write(&opened(&cluster, ask).await?, content).await
        })
    }

    fn overwrite(&self, path: &str, content: &[u8]) -> Result<(), Fault> {
        let (ask, content) = (made(path), Bytes::copy_from_slice(content));
        self.run(move |cluster| async move { write(&opened(&cluster, ask).await?, content).await })
    }

    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, Fault> {
        let at = at(path).expect("a path");
        self.run(move |cluster| async move {
            let attr = match cluster.stat(&root(), at, true).await {
                Ok(attr) => attr,
                Err(error) if error.code == ErrorCode::NotFound => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let file = cluster.open(&root(), attr);
            file.learn(&attr);
            Ok(Some(file.read_at(0, attr.size as usize).await?.to_vec()))
        })
    }

    fn append(&self, path: &str, record: &[u8]) -> Result<(), Fault> {
        let (ask, record) = (made(path), Bytes::copy_from_slice(record));
        self.run(move |cluster| async move {
            let file = opened(&cluster, ask).await?;
            let appended = async {
                file.append(record).await?;
                file.sync().await
            };
            appended.await.map(drop).map_err(|error| Fault::from(error).halfway())
        })
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), Fault> {
        let ask = fs::Rename { from: at(from), to: at(to), ..Default::default() };
        self.run(move |cluster| async move { Ok(cluster.rename(&root(), ask).await?) })
    }

    fn claim(&self, path: &str) -> Result<(), Fault> {
        let ask = fs::CreateFile { exclusive: true, ..made(path) };
        self.run(move |cluster| async move { Ok(cluster.create(&root(), ask).await.map(drop)?) })
    }

    fn names(&self, directory: &str) -> Result<Vec<String>, Fault> {
        let at = at(directory).expect("a path");
        self.run(move |cluster| async move {
            let page = cluster.list(&root(), at, Bytes::new(), 1000).await?;
            Ok(page.entries.iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()).collect())
        })
    }

    fn mkdir(&self, path: &str) -> Result<(), Fault> {
        let ask = fs::Mkdir { at: at(path), mode: 0o755, parents: true, ..Default::default() };
        self.run(move |cluster| async move { Ok(cluster.mkdir(&root(), ask).await.map(drop)?) })
    }

    fn remove(&self, path: &str) -> Result<(), Fault> {
        let at = at(path).expect("a path");
        self.run(move |cluster| async move { Ok(cluster.unlink(&root(), at).await?) })
    }

    fn count(&self, _: &str, _: &mut dyn FnMut(Moment)) -> Option<Result<(), Fault>> {
        None
    }
}
