//! The log, and its filter, which operators can change while the agent runs.

use std::io::{self, IsTerminal as _};

use thiserror::Error;
use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload::Handle;

use crate::config::{LogFormat, Logging};

/// A filter that cannot be used.
#[derive(Debug, Error)]
pub enum Error {
    /// It does not parse.
    #[error(
        "--log-level {level}: {reason}: give off, error, warn, info, debug, trace, or a filter such as `podwire::daemon=debug`"
    )]
    Level {
        /// What was asked for.
        level: String,
        /// Why it does not parse.
        reason: String,
    },
    /// The log has ended.
    #[error("the log takes no other filter: {0}")]
    Log(#[from] tracing_subscriber::reload::Error),
}

/// Changes the filter of the running log.
pub struct Control(Box<dyn Fn(EnvFilter) -> Result<(), tracing_subscriber::reload::Error> + Send + Sync>);

impl Control {
    fn new<S: Subscriber + for<'a> LookupSpan<'a> + 'static>(handle: Handle<EnvFilter, S>) -> Self {
        Self(Box::new(move |filter| handle.reload(filter)))
    }

    /// Sets what is logged from now on.
    ///
    /// # Errors
    /// [`Error`]; the filter then stays as it is.
    pub fn set(&self, level: &str) -> Result<(), Error> {
        Ok((self.0)(filter(level)?)?)
    }
}

/// Starts the log of this process.
///
/// # Errors
/// [`Error::Level`].
pub fn start(logging: &Logging) -> Result<Control, Error> {
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter(&logging.log_level)?)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    Ok(match logging.log_format {
        LogFormat::Text => {
            let log = log.with_filter_reloading();
            let control = Control::new(log.reload_handle());
            log.init();
            control
        }
        LogFormat::Json => {
            let log = log.json().with_filter_reloading();
            let control = Control::new(log.reload_handle());
            log.init();
            control
        }
    })
}

fn filter(level: &str) -> Result<EnvFilter, Error> {
    // Silence the library: the agent logs these events itself.
    EnvFilter::try_new(format!("kube_client=off,kube_runtime=off,{level}"))
        .map_err(|error| Error::Level { level: level.into(), reason: error.to_string() })
}
