//! For tests: what is logged by the thread of a test.

use std::{io, sync::Arc};

use parking_lot::Mutex;
use tracing::{Dispatch, subscriber::DefaultGuard};
use tracing_subscriber::{fmt::MakeWriter, registry};

/// What the thread that made it has logged since, at INFO and above, as text without colours.
pub(crate) struct Heard {
    text: Text,
    _default: DefaultGuard,
    /// While there is one subscriber only, a place that logs for the first time asks that of its own thread, and what it
    /// hears there (nobody listens, in the thread of another test) is kept for all.
    _second: Dispatch,
}

#[derive(Clone, Default)]
struct Text(Arc<Mutex<Vec<u8>>>);

impl Heard {
    pub(crate) fn from_now_on() -> Self {
        let text = Text::default();
        let second = Dispatch::new(registry());
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(text.clone()).finish();
        Self { text, _default: tracing::subscriber::set_default(subscriber), _second: second }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.0.lock()).into_owned()
    }
}

impl io::Write for Text {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Text {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
