//! Progress on a terminal: one line that says what is going on and, while sending, a bar. Writes nothing where standard
//! error isn't a terminal.

use std::{io::IsTerminal, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The line; its clones are the same line.
#[derive(Clone)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// On standard error, if that is a terminal and `wanted`.
    pub fn on_terminal(wanted: bool) -> Self {
        if wanted && std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
            bar.enable_steady_tick(Duration::from_millis(150));
            Self { bar }
        } else {
            Self::hidden()
        }
    }

    /// Nothing is shown.
    pub fn hidden() -> Self {
        Self { bar: ProgressBar::hidden() }
    }

    /// Says what is going on.
    pub fn doing(&self, what: impl Into<String>) {
        self.bar.set_style(style("{spinner} {msg}"));
        self.bar.set_message(what.into());
    }

    /// Shows a bar for so many bytes more.
    pub fn sending(&self, what: impl Into<String>, bytes: u64) {
        self.bar.set_length(bytes);
        self.bar.set_position(0);
        self.bar.set_style(style(
            "{spinner} {msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
        ));
        self.bar.set_message(what.into());
    }

    /// So many bytes are on their way.
    pub fn sent(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// Writes to standard error beside the line, also where that is no terminal.
    pub fn beside(&self, text: &str) {
        self.bar.suspend(|| eprint!("{text}"));
    }

    /// Takes the line away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    // the templates above are the only ones, and a test makes each
    ProgressStyle::with_template(template).expect("a valid template")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_valid() {
        let progress = Progress::hidden();
        progress.doing("reading");
        progress.sending("sending", 10);
        progress.sent(5);
        progress.finish();
    }
}
