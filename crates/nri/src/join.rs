//! How a plugin joins: it registers, is configured, is told what exists.

use std::sync::{Arc, Mutex, PoisonError};

use berth_api::nri::{
    ConfigureRequest, ConfigureResponse, Empty, RegisterPluginRequest, UpdateContainersRequest,
    UpdateContainersResponse,
};
use bytes::Bytes;
use prost::Message as _;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::connection::{Connection, Service, Status};
use crate::error::bounded;
use crate::launch::{Process, Program};
use crate::names::{ALL, is_index, is_name};
use crate::nri::{Answer, MAX_PLUGINS, Shared};
use crate::plugin::Plugin;
use crate::synchronize;

/// Most containers that one request may update or evict.
const MAX_UPDATES: usize = 4096;
/// The version of the interface that plugins are told.
const NRI_VERSION: &str = "v0.12.0";

/// A plugin that connected: takes part until it is gone.
pub(crate) async fn connected(shared: Arc<Shared>, stream: UnixStream) {
    if let Some(plugin) = join(&shared, stream, None).await {
        attend(shared, plugin).await;
    }
}

/// A program that was started: returns once it has joined or was given up.
pub(crate) async fn launched(
    shared: &Arc<Shared>,
    stream: UnixStream,
    program: Program,
    mut process: Process,
) {
    let Some(plugin) = join(shared, stream, Some(&program)).await else {
        process.end().await;
        return;
    };
    let attended = attend(Arc::clone(shared), plugin);
    shared.tasks.spawn(async move {
        attended.await;
        process.end().await;
    });
}

/// Waits until the plugin is gone, or the runtime goes.
async fn attend(shared: Arc<Shared>, plugin: Arc<Plugin>) {
    plugin.connection.closed().await;
    shared.remove(&plugin);
    tracing::info!(plugin = plugin.id(), "plugin is gone");
}

/// What a plugin was called when it registered.
type Registration = Result<(String, String), String>;

async fn join(
    shared: &Arc<Shared>,
    stream: UnixStream,
    program: Option<&Program>,
) -> Option<Arc<Plugin>> {
    let (registered, registration) = oneshot::channel();
    let service =
        Arc::new(Host { shared: Arc::clone(shared), registered: Mutex::new(Some(registered)) });
    let closed = shared.shutdown.child_token();
    let connection = Connection::open(stream, service, &shared.tasks, closed);
    match settle(shared, &connection, registration, program).await {
        Ok(plugin) => {
            tracing::info!(plugin = plugin.id(), "plugin has joined");
            Some(plugin)
        }
        Err(problem) => {
            connection.close();
            let plugin = program.map(ToString::to_string);
            tracing::warn!(plugin, problem, "plugin did not join");
            None
        }
    }
}

async fn settle(
    shared: &Arc<Shared>,
    connection: &Connection,
    registration: oneshot::Receiver<Registration>,
    program: Option<&Program>,
) -> Result<Arc<Plugin>, String> {
    let config = &shared.config;
    let limit = config.registration_timeout;
    let registered = tokio::select! {
        registered = timeout(limit, registration) => registered,
        () = connection.closed() => return Err("its connection closed".to_owned()),
    };
    let registered = registered.map_err(|_| format!("it did not register within {limit:?}"))?;
    let asked = registered.map_err(|_| "its connection closed".to_owned())?;
    let (index, name) = match program {
        // It is who it was started as.
        Some(program) => (program.index.clone(), program.name.clone()),
        None => asked?,
    };
    let request = ConfigureRequest {
        config: program.map(|program| program.config.clone()).unwrap_or_default(),
        runtime_name: config.runtime.0.clone(),
        runtime_version: config.runtime.1.clone(),
        registration_timeout: millis(limit),
        request_timeout: millis(config.request_timeout),
        nri_version: NRI_VERSION.to_owned(),
    };
    let configured: ConfigureResponse = connection
        .call("Configure", &request, config.request_timeout)
        .await
        .map_err(|error| format!("configure: {}", error.told()))?;
    let events = match u32::try_from(configured.events) {
        Ok(0) => ALL,
        Ok(events) if events & !ALL == 0 => events,
        _ => return Err(format!("it wants events that are none: {:#x}", configured.events)),
    };
    if shared.plugins().len() >= MAX_PLUGINS {
        return Err(format!("there are {MAX_PLUGINS} plugins already"));
    }
    let plugin = Arc::new(Plugin::new(index, name, events, connection.clone()));
    synchronize::synchronize(shared, &plugin).await?;
    Ok(plugin)
}

fn millis(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// What the runtime does for one plugin.
struct Host {
    shared: Arc<Shared>,
    registered: Mutex<Option<oneshot::Sender<Registration>>>,
}

impl Service for Host {
    fn call<'a>(&'a self, method: &'a str, payload: Bytes) -> Answer<'a, Result<Vec<u8>, Status>> {
        Box::pin(async move {
            let read = |_| Status::invalid(format!("{method}: a request that cannot be read"));
            match method {
                "RegisterPlugin" => {
                    self.register(RegisterPluginRequest::decode(payload).map_err(read)?)?;
                    Ok(Empty {}.encode_to_vec())
                }
                "UpdateContainers" => {
                    let request = UpdateContainersRequest::decode(payload).map_err(read)?;
                    Ok(self.update(request).await?.encode_to_vec())
                }
                other => Err(Status::unimplemented(&bounded(other))),
            }
        })
    }
}

impl Host {
    fn register(&self, request: RegisterPluginRequest) -> Result<(), Status> {
        let registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(registered) = registered else {
            return Err(Status::invalid("it has registered before"));
        };
        let (index, name) = (request.plugin_idx, request.plugin_name);
        let outcome = if !is_index(&index) {
            Err(format!("{:?} is no index: two digits", bounded(&index)))
        } else if !is_name(&name) {
            Err(format!("{:?} is no name of a plugin", bounded(&name)))
        } else {
            Ok((index, name))
        };
        let refused = outcome.clone().err();
        // Who waits for it may have given up.
        let _unheard = registered.send(outcome);
        refused.map_or(Ok(()), |problem| Err(Status::invalid(problem)))
    }

    async fn update(
        &self,
        request: UpdateContainersRequest,
    ) -> Result<UpdateContainersResponse, Status> {
        if self.registered.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            return Err(Status::invalid("it has not registered"));
        }
        if request.update.len() + request.evict.len() > MAX_UPDATES {
            return Err(Status::invalid(format!("more than {MAX_UPDATES} updates")));
        }
        let Some(runtime) = self.shared.runtime() else {
            return Err(Status::invalid("the runtime has not started"));
        };
        let failed = runtime.update(request.update, request.evict).await;
        Ok(UpdateContainersResponse { failed })
    }
}
