//! Whether anything goes on over a connection: requests being handled, answers being taken. One over which nothing does is
//! closed, whatever it does to look alive, and so is one whose other side doesn't take its answer, where that doesn't show
//! at the socket: on HTTP/2 it closes the window of a stream.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use axum::{
    body::{Body, Bytes, HttpBody},
    response::Response,
};
use http_body::{Frame, SizeHint};
use tower::Service;

/// Of one connection.
#[derive(Debug, Default)]
pub(super) struct Activity {
    /// Requests whose handlers run. They have limits of their own.
    handling: AtomicUsize,
    /// Answers of which something is still to be sent.
    sending: AtomicUsize,
    /// Requests that began, and that were answered.
    steps: AtomicU64,
    /// Bytes of answers that were taken.
    moved: AtomicU64,
    /// The socket takes nothing right now. How long it may is judged there.
    blocked: AtomicBool,
}

/// What went on since the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Busy,
    Idle,
    /// An answer is there, and the other side took less of it than it has to.
    Stalled,
}

impl Activity {
    /// Looks, and begins to count anew. `least` are the bytes of answers that have to be taken from one look to the next.
    pub(super) fn look(&self, least: u64) -> State {
        let (steps, moved) = (self.steps.swap(0, Relaxed), self.moved.swap(0, Relaxed));
        // what is still on its way to the socket may be the end of an answer whose body is gone
        if steps > 0 || self.handling.load(Relaxed) > 0 || self.blocked.load(Relaxed) {
            return State::Busy;
        }
        match self.sending.load(Relaxed) {
            0 => State::Idle,
            _ if moved < least => State::Stalled,
            _ => State::Busy,
        }
    }
}

impl Activity {
    /// Notes whether the socket takes what it is given.
    pub(super) fn note_socket(&self, blocked: bool) {
        if self.blocked.load(Relaxed) != blocked {
            self.blocked.store(blocked, Relaxed);
        }
    }
}

/// Counts down when it is dropped: also where a request is given up.
struct Count(Arc<Activity>, fn(&Activity) -> &AtomicUsize);

impl Count {
    fn up(activity: &Arc<Activity>, which: fn(&Activity) -> &AtomicUsize) -> Self {
        which(activity).fetch_add(1, Relaxed);
        activity.steps.fetch_add(1, Relaxed);
        Self(activity.clone(), which)
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        (self.1)(&self.0).fetch_sub(1, Relaxed);
    }
}

/// A service that notes what goes on.
#[derive(Clone)]
pub(super) struct Noting<S> {
    inner: S,
    activity: Arc<Activity>,
}

impl<S> Noting<S> {
    pub(super) const fn new(inner: S, activity: Arc<Activity>) -> Self {
        Self { inner, activity }
    }
}

impl<S, R> Service<R> for Noting<S>
where
    S: Service<R, Response = Response>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let handling = Count::up(&self.activity, |a| &a.handling);
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            let sending = Count::up(&handling.0, |a| &a.sending);
            drop(handling);
            Ok(answer.map(|body| Body::new(Noted { body, sending })))
        })
    }
}

/// A body that notes what is taken of it.
struct Noted {
    body: Body,
    sending: Count,
}

impl HttpBody for Noted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            self.sending.0.moved.fetch_add(bytes as u64, Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_look_sees() {
        let activity = Arc::new(Activity::default());
        assert_eq!(activity.look(10), State::Idle);
        let handling = Count::up(&activity, |a| &a.handling);
        assert_eq!((activity.look(10), activity.look(10)), (State::Busy, State::Busy));
        let sending = Count::up(&activity, |a| &a.sending);
        drop(handling);
        // it began a moment ago
        assert_eq!((activity.look(10), activity.look(10)), (State::Busy, State::Stalled));
        activity.note_socket(true);
        assert_eq!((activity.look(10), activity.look(10)), (State::Busy, State::Busy));
        activity.note_socket(false);
        activity.moved.fetch_add(10, Relaxed);
        assert_eq!((activity.look(10), activity.look(10)), (State::Busy, State::Stalled));
        drop(sending);
        assert_eq!(activity.look(10), State::Idle);
    }
}
