//! What a namenode shows over HTTP: metrics, whether it is ready, and the dashboard.
//!
//! Every namenode serves the same dashboard. What a page asks, the leader answers ([`look`]); a follower passes the
//! question on to it by the RPC `Look`. What changes is pushed, once a second ([`events`]).

mod events;
mod look;
mod metrics;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cairn_host::disk::{Found, SharedDisk};
use cairn_host::net::Network;
use cairn_ops::http::{Answer, Asked, Role};
use cairn_proto::control::LookRequest;
use futures::future::BoxFuture;
use http::StatusCode;
use serde_json::json;

use crate::channel;
use crate::config::Config;
use crate::door::Census;
use crate::member;
use crate::seat::Seat;
use events::Sampler;
pub use look::{Look, Question, answer};

/// For the leader to answer a follower that serves a page.
const LEADER_PATIENCE: Duration = Duration::from_secs(3);
const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// A namenode as it is seen from outside.
pub struct Site {
    here: Here,
    census: Census,
    disk: SharedDisk,
    dir: PathBuf,
    sampler: Sampler,
}

/// Who answers, and the way to whoever can.
#[derive(Clone)]
struct Here {
    seat: Arc<Seat>,
    network: Arc<dyn Network>,
    advertise: String,
}

/// The question of a page, if it is one.
pub fn question(asked: &Asked) -> Option<Question> {
    let value = |name: &str| asked.value(name).unwrap_or_default();
    let number = |name: &str| String::from_utf8(value(name)).ok()?.parse().ok();
    match asked.path.as_str() {
        "/api/sample" => Some(Question::Sample),
        "/api/list" => Some(Question::List { path: value("path"), after: value("after") }),
        "/api/file" => Some(Question::File { path: value("path"), offset: number("offset").unwrap_or(0) }),
        _ => None,
    }
}

impl Site {
    /// The site of the namenode on `seat`.
    pub fn new(config: &Config, seat: Arc<Seat>, census: Census) -> Site {
        let here = Here { seat, network: config.host.network.clone(), advertise: config.advertise.clone() };
        let taking = here.clone();
        let sampler = Sampler::new(Arc::new(move || {
            let here = taking.clone();
            Box::pin(async move { here.sample().await })
        }));
        Site { here, census, disk: config.disk.clone(), dir: config.dir.clone(), sampler }
    }

    /// Bytes of the store's file, and of the log's.
    fn bytes_on_disk(&self) -> (u64, u64) {
        let length = |path: PathBuf| match self.disk.look(&path) {
            Ok(Some(Found::File { length })) => length,
            _ => 0,
        };
        let log = self.dir.join(member::LOG);
        let segments = self.disk.list(&log).unwrap_or_default();
        let log = segments.into_iter().map(|name| length(log.join(name))).sum();
        (length(self.dir.join(member::STORE)), log)
    }
}

impl Here {
    /// The answer of whoever leads.
    async fn ask(&self, asked: Asked, question: Question) -> Look {
        let leader = self.seat.member().filter(|member| member.refusal().is_none());
        if let Some(member) = leader {
            return answer(&member, &question);
        }
        let leader = self.seat.who_leads().leader_address;
        if leader.is_empty() || leader == self.advertise {
            return Look::refusal(503, "the namenodes have no leader at the moment");
        }
        let why = match self.pass_on(&leader, asked).await {
            Ok(look) => return look,
            Err(why) => why,
        };
        Look::refusal(503, format!("the leader, {leader}, does not answer: {why}"))
    }

    async fn pass_on(&self, leader: &str, asked: Asked) -> Result<Look, String> {
        let mut client = channel::namenode(&self.network, leader).map_err(|error| error.to_string())?;
        let request = LookRequest { path: asked.path, query: asked.query };
        let reply = match tokio::time::timeout(LEADER_PATIENCE, client.look(request)).await {
            Ok(Ok(reply)) => reply.into_inner(),
            Ok(Err(status)) => return Err(status.message().to_owned()),
            Err(_) => return Err(format!("not within {} s", LEADER_PATIENCE.as_secs())),
        };
        match reply.error {
            Some(error) => Err(cairn_proto::Error::from(error).to_string()),
            None => {
                let json = String::from_utf8(reply.json.into()).map_err(|error| error.to_string())?;
                Ok(Look { status: reply.status, json })
            }
        }
    }

    /// What is pushed: who serves the page, and what the leader says.
    async fn sample(&self) -> String {
        let asked = Asked { path: "/api/sample".into(), query: String::new() };
        let look = self.ask(asked, Question::Sample).await;
        let known = self.seat.who_leads();
        let here = json!({
            "id": known.id, "address": self.advertise, "term": known.term, "leader": known.leader_address,
        });
        // Both are JSON already, without line breaks.
        format!("{{\"here\":{here},\"sample\":{}}}", look.json)
    }
}

impl Role for Site {
    fn ready(&self) -> Result<(), String> {
        let Some(member) = self.here.seat.member() else {
            return Err("this namenode is not part of a group yet".into());
        };
        let leadership = member.group.leadership();
        if leadership.leader.is_none() {
            return Err("no leader is known".into());
        }
        match member.refusal() {
            Some(error) if leadership.leads => Err(error.to_string()),
            _ => Ok(()),
        }
    }

    fn page(&self, asked: Asked) -> BoxFuture<'static, Option<Answer>> {
        let fixed = match asked.path.as_str() {
            "/" => Some(Answer::of(HTML, include_str!("page/index.html"))),
            "/app.css" => Some(Answer::of(CSS, include_str!("page/app.css"))),
            "/app.js" => Some(Answer::of(SCRIPT, include_str!("page/app.js"))),
            "/chart.js" => Some(Answer::of(SCRIPT, include_str!("page/chart.js"))),
            "/files.js" => Some(Answer::of(SCRIPT, include_str!("page/files.js"))),
            "/format.js" => Some(Answer::of(SCRIPT, include_str!("page/format.js"))),
            "/icon.svg" => Some(Answer::of("image/svg+xml", include_str!("page/icon.svg"))),
            "/events" => Some(self.sampler.look()),
            _ => None,
        };
        let question = question(&asked);
        let here = self.here.clone();
        Box::pin(async move {
            if fixed.is_some() {
                return fixed;
            }
            let look = here.ask(asked, question?).await;
            let status = u16::try_from(look.status).ok().and_then(|status| StatusCode::from_u16(status).ok());
            Some(Answer::json(status.unwrap_or(StatusCode::BAD_GATEWAY), look.json))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_from_urls() {
        let ask = |path: &str, query: &str| question(&Asked { path: path.into(), query: query.into() });
        assert_eq!(ask("/api/sample", ""), Some(Question::Sample));
        let list = Question::List { path: b"/a\xff".to_vec(), after: Vec::new() };
        assert_eq!(ask("/api/list", "path=/a%FF"), Some(list));
        let file = Question::File { path: b"/a".to_vec(), offset: 0 };
        assert_eq!(ask("/api/file", "path=/a&offset=-1"), Some(file));
        assert_eq!(ask("/api/other", ""), None);
    }
}
