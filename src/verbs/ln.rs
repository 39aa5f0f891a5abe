//! `cairn ln`.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use anyhow::{Result, bail};
use bytes::Bytes;
use cairn_client::{ErrorCode, fs};
use clap::Args;

use crate::client::Client;
use crate::exit::PathError;
use crate::paths::{ClusterPath, temporary_name};

/// Arguments of `cairn ln`.
#[derive(Args)]
pub struct Ln {
    /// What the link points to
    target: OsString,
    /// The link, or the directory it goes into
    link: ClusterPath,
    /// Make a symbolic link; TARGET is kept as it is written
    #[arg(short, long)]
    symbolic: bool,
    /// Remove a file that has the name
    #[arg(short, long)]
    force: bool,
}

/// Makes a link.
pub async fn run(client: Arc<Client>, args: Ln) -> Result<()> {
    let source = ClusterPath::named(&args.target)?;
    let mut link = args.link;
    if client.is_directory(&link).await? {
        link = link.join(source.name().unwrap_or(args.target.as_bytes()));
    }
    if link.directory_meant() {
        client.look_for_file(&link).await?;
    }
    if !args.symbolic {
        client.stat(&source, false).await?;
    }
    let kind = if args.symbolic { Kind::Symbolic(args.target.into_vec().into()) } else { Kind::Hard(source) };
    if args.force
        && let Some(old) = client.look(&link, false).await?
    {
        return replace(&client, &kind, &link, &old).await;
    }
    make(&client, &kind, &link).await.map_err(PathError::remote(&link))?;
    Ok(())
}

/// What is made.
enum Kind {
    /// Another name of this file.
    Hard(ClusterPath),
    /// A link with this text.
    Symbolic(Bytes),
}

impl Kind {
    /// The file that the link leads to. A symbolic one counts from the directory that the link is in.
    fn source(&self, link: &ClusterPath) -> ClusterPath {
        match self {
            Kind::Hard(source) => source.clone(),
            Kind::Symbolic(text) if text.starts_with(b"/") => ClusterPath::new(text),
            Kind::Symbolic(text) => ClusterPath::new(&[link.parent().as_bytes(), b"/", text].concat()),
        }
    }
}

async fn make(client: &Client, kind: &Kind, at: &ClusterPath) -> cairn_client::Result<fs::Attr> {
    match kind {
        Kind::Hard(source) => {
            let ask = fs::Link { from: Some(source.node()), at: Some(at.node()) };
            client.cluster.link(&client.cred, ask).await
        }
        Kind::Symbolic(text) => {
            let (uid, gid) = (client.cred.uid, client.cred.gid);
            let ask = fs::Symlink { at: Some(at.node()), target: text.clone(), uid, gid };
            client.cluster.symlink(&client.cred, ask).await
        }
    }
}

/// Makes the link under a temporary name and renames it over `old`, which stays if anything fails.
async fn replace(client: &Client, kind: &Kind, link: &ClusterPath, old: &fs::Attr) -> Result<()> {
    if old.kind() == fs::FileKind::Directory {
        return Err(PathError::Remote(link.clone(), ErrorCode::IsDirectory.into()).into());
    }
    let source = kind.source(link);
    if let Ok(Some(found)) = client.look(&source, false).await
        && found.inode == old.inode
    {
        // The link would take the place of the only name of what it leads to.
        if old.nlink < 2 || source.as_bytes() == link.as_bytes() {
            bail!("{source} and {link} are the same file");
        }
        if matches!(kind, Kind::Hard(_)) {
            return Ok(());
        }
    }
    let temporary = link.parent().join(&temporary_name(link.name().unwrap_or_default(), "ln"));
    make(client, kind, &temporary).await.map_err(PathError::remote(link))?;
    let ask = fs::Rename {
        from: Some(temporary.node()),
        to: Some(link.node()),
        mode: fs::RenameMode::Replace as i32,
    };
    if let Err(error) = client.cluster.rename(&client.cred, ask).await {
        // Under its telling name it does no harm if it cannot be removed now.
        let _ = client.cluster.unlink(&client.cred, temporary.node()).await;
        return Err(PathError::Remote(link.clone(), error).into());
    }
    Ok(())
}
