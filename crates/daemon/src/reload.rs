//! What SIGHUP changes: the configuration is read again, and what can change does.
//!
//! A file that is refused changes nothing, and is told with its line. What would need other
//! directories, sockets, networks or stores waits for a restart, and is told by its table.

use std::ffi::OsString;
use std::path::PathBuf;

use berth_engine::Engine;
use berth_registry::Client;
use berth_telemetry::{Filter, Telemetry};
use tokio::signal::unix::Signal;
use tokio::sync::watch;

use crate::config::Config;
use crate::{configuration, notify, settings};

/// What a running daemon can change, and the configuration that it runs with.
#[derive(Debug)]
pub(crate) struct Reloading<'a> {
    /// As the command line named the file.
    pub(crate) path: Option<PathBuf>,
    pub(crate) running: Config,
    /// That, as operators see it.
    pub(crate) shown: watch::Sender<String>,
    pub(crate) telemetry: &'a Telemetry,
    pub(crate) client: Client,
    pub(crate) engine: Engine,
}

impl Reloading<'_> {
    /// Reads the file again whenever `hangup` says so.
    pub(crate) async fn watch(&mut self, mut hangup: Signal) {
        while hangup.recv().await.is_some() {
            self.reload().await;
        }
    }

    /// Reads the file again, and tells the supervisor before and after: a unit of
    /// `Type=notify-reload` waits for that.
    async fn reload(&mut self) {
        let supervisor = std::env::var_os("NOTIFY_SOCKET");
        tell(supervisor.clone(), &notify::reloading());
        self.read_again().await;
        tell(supervisor, notify::READY);
    }

    /// A failure is logged, and nothing is changed then.
    async fn read_again(&mut self) {
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || configuration(path)).await;
        let changed = match read {
            Ok(Ok(new)) => self.apply(new),
            Ok(Err(error)) => Err(error),
            Err(died) => Err(died.into()),
        };
        match changed {
            Ok(waiting) if waiting.is_empty() => tracing::info!("configuration read again"),
            Ok(waiting) => {
                let waiting = waiting.join(", ");
                tracing::warn!(waiting, "configuration read again; the rest needs a restart");
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(error, "configuration refused; the old one stays");
            }
        }
    }

    /// Changes what can change; returns the tables with something that cannot.
    fn apply(&mut self, new: Config) -> anyhow::Result<Vec<&'static str>> {
        // Whatever may fail comes first.
        let filter: Filter = new.log.filter.parse()?;
        self.client.configure(settings::registry(&new, settings::proxies()))?;
        self.telemetry.set_filter(filter)?;
        self.engine.set_defaults(settings::pids_limit(&new), new.container.shm_size);
        adopt(&mut self.running, &new);
        self.shown.send_replace(settings::shown(&self.running));
        Ok(waiting(&self.running, &new))
    }
}

/// A supervisor that cannot be told is no reason to end.
fn tell(supervisor: Option<OsString>, state: &str) {
    if let Err(error) = notify::notify(supervisor, state) {
        tracing::warn!(error = &error as &dyn std::error::Error, "notify supervisor");
    }
}

/// Takes over what [`Reloading::apply`] has changed.
fn adopt(running: &mut Config, new: &Config) {
    running.log.filter.clone_from(&new.log.filter);
    running.image.plain_http.clone_from(&new.image.plain_http);
    running.image.ca_files.clone_from(&new.image.ca_files);
    running.registry = new.registry.clone();
    running.container.pids_limit = new.container.pids_limit;
    running.container.shm_size = new.container.shm_size;
}

/// The tables in which the two still differ.
fn waiting(running: &Config, new: &Config) -> Vec<&'static str> {
    let tables = [
        ("root", running.root != new.root),
        ("state", running.state != new.state),
        ("cri", running.cri != new.cri),
        ("streaming", running.streaming != new.streaming),
        ("log", running.log != new.log),
        ("image", running.image != new.image),
        ("metrics", running.metrics != new.metrics),
        ("network", running.network != new.network),
        ("container", running.container != new.container),
        ("nri", running.nri != new.nri),
        ("runtime", running.runtime != new.runtime),
    ];
    let mut differing: Vec<_> =
        tables.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name).collect();
    if differing.is_empty() && running != new {
        differing.push("other tables");
    }
    differing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Config {
        Config::parse("test.toml".as_ref(), text).unwrap()
    }

    #[test]
    fn what_can_change_waits_for_nothing() {
        let mut running = Config::default();
        let new = parse(
            "[log]\nfilter = 'debug'\n[registry]\nconfig_path = '/etc/x'\n\
             [image]\nplain_http = ['a']\n[container]\npids_limit = 5\nshm_size = 8192\n",
        );
        adopt(&mut running, &new);
        assert_eq!(waiting(&running, &new), [""; 0]);
        assert_eq!(running, new);
    }

    #[test]
    fn what_cannot_is_told_by_its_table() {
        for (text, table) in [
            ("root = '/a'", "root"),
            ("state = '/a'", "state"),
            ("[cri]\nsocket = '/run/a.sock'", "cri"),
            ("[streaming]\naddress = '127.0.0.1:1'", "streaming"),
            ("[log]\nformat = 'json'", "log"),
            ("[image]\nparallel_layers = 5", "image"),
            ("[metrics]\naddress = '127.0.0.1:1'", "metrics"),
            ("[network]\nmtu = 9000", "network"),
            ("[container]\ncgroup_base = '/a'", "container"),
            ("[nri]\nenabled = false", "nri"),
            ("[runtime.handlers.berth]\nshim = 'x'", "runtime"),
        ] {
            let (mut running, new) = (Config::default(), parse(text));
            adopt(&mut running, &new);
            assert_eq!(waiting(&running, &new), [table], "{text}");
        }
    }
}
