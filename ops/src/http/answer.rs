//! Answers, and how they become responses.

use std::convert::Infallible;

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use tokio::sync::mpsc;

use super::guests::Ticket;

/// Nothing is loaded from anywhere else, framed, or sent anywhere else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What is answered to a request.
#[derive(Debug)]
pub struct Answer {
    status: StatusCode,
    kind: &'static str,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Whole(Bytes),
    Events(mpsc::Receiver<Bytes>),
}

/// Where events go; each as text without line breaks. Fails when nobody listens any more.
pub struct Events(mpsc::Sender<Bytes>);

impl Events {
    /// Sends an event as soon as the one before is taken.
    pub async fn send(&self, text: &str) -> Result<(), Gone> {
        self.0.send(Bytes::from(format!("data: {text}\n\n"))).await.map_err(|_| Gone)
    }
}

/// Nobody listens any more.
#[derive(Debug, PartialEq, Eq)]
pub struct Gone;

impl Answer {
    /// Some text.
    pub fn text(status: StatusCode, text: impl Into<Bytes>) -> Answer {
        Answer { status, kind: "text/plain; charset=utf-8", content: Content::Whole(text.into()) }
    }

    /// A document of some kind.
    pub fn of(kind: &'static str, content: impl Into<Bytes>) -> Answer {
        Answer { status: StatusCode::OK, kind, content: Content::Whole(content.into()) }
    }

    /// JSON.
    pub fn json(status: StatusCode, text: impl Into<Bytes>) -> Answer {
        Answer { status, kind: "application/json", content: Content::Whole(text.into()) }
    }

    /// A stream of events, and where to put them. Who does not read them is cut off.
    pub fn events() -> (Answer, Events) {
        let (sender, receiver) = mpsc::channel(1);
        let kind = "text/event-stream";
        (Answer { status: StatusCode::OK, kind, content: Content::Events(receiver) }, Events(sender))
    }

    pub(super) fn into_response(
        self,
        is_head: bool,
        ticket: Ticket,
    ) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
        let body = match self.content {
            Content::Whole(_) if is_head => Full::default().boxed_unsync(),
            Content::Whole(bytes) => Full::new(bytes).boxed_unsync(),
            Content::Events(receiver) => {
                let stream = futures::stream::unfold(receiver, |mut receiver| async {
                    let bytes = receiver.recv().await?;
                    Some((bytes, receiver))
                });
                let frames = stream.map(move |bytes| {
                    // It asked for the next one: it has read those before.
                    ticket.is_reading();
                    Ok(Frame::data(bytes))
                });
                StreamBody::new(frames).boxed_unsync()
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        for (name, value) in [
            (header::CONTENT_TYPE, self.kind),
            (header::CACHE_CONTROL, "no-store"),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}
