//! How long a connection's reader is waited for. Who takes nothing, or next to nothing, loses his connection.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

/// What is asked of whoever reads an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// The time over which the rate is measured.
    pub(super) idle: Duration,
    /// Bytes per second.
    pub(super) rate: u64,
}

/// A reader, as the socket's buffer shows him. Only the time in which the buffer is full counts: a gateway that has nothing
/// to send, between requests or because a disk is slow, waits for nobody.
pub(super) struct Reader {
    pace: Pace,
    /// Since when there is no room in the buffer.
    blocked: Option<Instant>,
    /// Time that was waited since it was last judged, but for the wait under way, and bytes taken since then.
    waited: Duration,
    taken: u64,
    /// The time is over, and it is being found out how much room there is.
    probing: bool,
    /// Comes no later than the time at which it has to be judged.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Reader {
    pub(super) const fn new(pace: Pace) -> Self {
        Self { pace, blocked: None, waited: Duration::ZERO, taken: 0, probing: false, alarm: None }
    }

    /// Called while the socket isn't writable; ready once it has to be tried, up to [`Reader::full`], how much room there is
    /// all the same: the kernel calls a socket writable only when a third of its buffer is free, and for a slow reader that
    /// may take minutes.
    pub(super) fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.probing {
            return Poll::Ready(());
        }
        let since = *self.blocked.get_or_insert_with(|| {
            // what went into an empty buffer is no proof that anybody reads
            if self.waited.is_zero() {
                self.taken = 0;
            }
            Instant::now()
        });
        let due = since + self.pace.idle.saturating_sub(self.waited);
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        loop {
            ready!(alarm.as_mut().poll(cx));
            let now = Instant::now();
            if now >= due {
                self.blocked = None;
                self.waited += now - since;
                self.probing = true;
                return Poll::Ready(());
            }
            // it was set for an earlier wait: setting it anew for each would cost more than a wait does
            alarm.as_mut().reset(due);
        }
    }

    /// There was room for so many bytes.
    pub(super) fn found(&mut self, bytes: usize) {
        self.taken += bytes as u64;
    }

    /// The socket was writable, and took so many bytes; an error if the reader was too slow.
    pub(super) fn took(&mut self, bytes: usize) -> io::Result<()> {
        self.taken += bytes as u64;
        if let Some(since) = self.blocked.take() {
            self.waited += since.elapsed();
        }
        self.full()
    }

    /// There is no more room; an error if the reader was too slow.
    pub(super) fn full(&mut self) -> io::Result<()> {
        self.probing = false;
        if self.waited < self.pace.idle {
            return Ok(());
        }
        let least = self.pace.rate.saturating_mul(self.pace.idle.as_secs()).max(1);
        if self.taken < least {
            return Err(io::ErrorKind::TimedOut.into());
        }
        (self.waited, self.taken) = (Duration::ZERO, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use std::task::Waker;

    const PACE: Pace = Pace { idle: Duration::from_secs(10), rate: 100 };

    /// Waits for the reader, who then takes these bytes; whether he may go on.
    async fn after(reader: &mut Reader, wait: u64, bytes: usize) -> bool {
        let due = std::future::poll_fn(|cx| reader.poll_due(cx));
        match tokio::time::timeout(Duration::from_secs(wait), due).await {
            // in parts, as it is found
            Ok(()) => {
                reader.found(bytes / 2);
                assert!(reader.poll_due(&mut Context::from_waker(Waker::noop())).is_ready());
                reader.found(bytes - bytes / 2);
                reader.full().is_ok()
            }
            Err(_) => reader.took(bytes).is_ok(),
        }
    }

    #[rstest]
    #[case::nothing(&[(10, 0)], false)]
    #[case::too_little(&[(10, 999)], false)]
    #[case::just_enough(&[(10, 1000), (10, 1000)], true)]
    #[case::little_by_little(&[(3, 100), (3, 100), (3, 100), (3, 100)], false)]
    #[case::enough_by_little(&[(3, 300), (3, 300), (3, 300), (3, 300)], true)]
    #[case::a_good_start(&[(1, 100_000), (9, 0), (10, 0)], false)]
    #[case::a_fast_reader(&[(1, 100_000), (1, 100_000), (1, 100_000)], true)]
    #[tokio::test(start_paused = true)]
    async fn readers_are_judged_by_what_they_took(#[case] waits: &[(u64, usize)], #[case] good: bool) {
        let mut reader = Reader::new(PACE);
        // into the empty buffer
        reader.took(1 << 20).unwrap();
        let mut results = Vec::new();
        for (wait, bytes) in waits {
            results.push(after(&mut reader, *wait, *bytes).await);
        }
        let last = results.pop().unwrap();
        assert!(results.iter().all(|good| *good), "{results:?}");
        assert_eq!(last, good);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_waited_for_between_answers() {
        let mut reader = Reader::new(PACE);
        assert!(after(&mut reader, 9, 100).await);
        tokio::time::sleep(Duration::from_secs(1000)).await;
        reader.took(1 << 20).unwrap();
        let began = Instant::now();
        std::future::poll_fn(|cx| reader.poll_due(cx)).await;
        // what is left of the ten seconds
        assert_eq!(began.elapsed().as_secs(), 1);
    }
}
