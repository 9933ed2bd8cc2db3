//! The two services: which verb answers which RPC.

use std::sync::Arc;

use berth_api::Encoded;
use berth_api::v1::image_service_server::ImageService;
use berth_api::v1::runtime_service_server::RuntimeService;
use berth_api::v1::*;
use berth_engine::Engine;
use berth_streaming::Urls;
use tokio::sync::{OnceCell, watch};
use tonic::{Request, Response, Status};

use crate::batch::Parts;
use crate::edge::{answer, request_span};
use crate::{Error, container, events, exec, images, list, metrics, node, sandbox, stats, stream};

/// Both services over one engine.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    engine: Engine,
    /// Where clients are sent for streams.
    urls: Urls,
    /// The daemon's configuration, as JSON.
    config: watch::Receiver<String>,
    /// Where images and writable layers are; asked once, since it does not move.
    filesystem: Arc<OnceCell<String>>,
}

impl Service {
    pub(crate) fn new(engine: Engine, urls: Urls, config: watch::Receiver<String>) -> Self {
        Self { engine, urls, config, filesystem: Arc::default() }
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Mount point by which kubelet knows the file system of images and writable layers.
    pub(crate) async fn filesystem(&self) -> Result<&str, Error> {
        let ask = async || {
            let info = self.engine.image_fs_info().await?;
            Ok::<_, Error>(info.mountpoint.to_string_lossy().into_owned())
        };
        Ok(self.filesystem.get_or_try_init(ask).await?)
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl RuntimeService for Service {
    async fn version(&self, request: Request<VersionRequest>) -> Answer<VersionResponse> {
        answer(request_span!(DEBUG, "cri.version"), request, async |request| {
            node::version(&self.engine, request).await
        })
        .await
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<RunPodSandboxRequest>,
    ) -> Answer<RunPodSandboxResponse> {
        answer(request_span!(INFO, "cri.run_pod_sandbox"), request, async |request| {
            sandbox::run(&self.engine, request).await
        })
        .await
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Answer<StopPodSandboxResponse> {
        answer(request_span!(INFO, "cri.stop_pod_sandbox"), request, async |request| {
            sandbox::stop(&self.engine, request).await
        })
        .await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Answer<RemovePodSandboxResponse> {
        answer(request_span!(INFO, "cri.remove_pod_sandbox"), request, async |request| {
            sandbox::remove(&self.engine, request).await
        })
        .await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Answer<PodSandboxStatusResponse> {
        answer(request_span!(DEBUG, "cri.pod_sandbox_status"), request, async |request| {
            sandbox::status(&self.engine, request).await
        })
        .await
    }

    async fn list_pod_sandbox(&self, request: Request<ListPodSandboxRequest>) -> Answer<Encoded> {
        answer(request_span!(DEBUG, "cri.list_pod_sandbox"), request, async |request| {
            list::sandboxes(&self.engine, request).await
        })
        .await
    }

    type StreamPodSandboxesStream = Parts<StreamPodSandboxesResponse>;
    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        answer(request_span!(DEBUG, "cri.stream_pod_sandboxes"), request, async |request| {
            list::sandboxes_in_parts(&self.engine, request).await
        })
        .await
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Answer<CreateContainerResponse> {
        answer(request_span!(INFO, "cri.create_container"), request, async |request| {
            container::create(&self.engine, request).await
        })
        .await
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Answer<StartContainerResponse> {
        answer(request_span!(INFO, "cri.start_container"), request, async |request| {
            container::start(&self.engine, request).await
        })
        .await
    }

    async fn stop_container(
        &self,
        request: Request<StopContainerRequest>,
    ) -> Answer<StopContainerResponse> {
        answer(request_span!(INFO, "cri.stop_container"), request, async |request| {
            container::stop(&self.engine, request).await
        })
        .await
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Answer<RemoveContainerResponse> {
        answer(request_span!(INFO, "cri.remove_container"), request, async |request| {
            container::remove(&self.engine, request).await
        })
        .await
    }

    async fn list_containers(&self, request: Request<ListContainersRequest>) -> Answer<Encoded> {
        answer(request_span!(DEBUG, "cri.list_containers"), request, async |request| {
            list::containers(&self.engine, request).await
        })
        .await
    }

    type StreamContainersStream = Parts<StreamContainersResponse>;
    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        answer(request_span!(DEBUG, "cri.stream_containers"), request, async |request| {
            list::containers_in_parts(&self.engine, request).await
        })
        .await
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Answer<ContainerStatusResponse> {
        answer(request_span!(DEBUG, "cri.container_status"), request, async |request| {
            container::status(&self.engine, request).await
        })
        .await
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        answer(request_span!(INFO, "cri.update_container_resources"), request, async |request| {
            container::update(&self.engine, request).await
        })
        .await
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        answer(request_span!(INFO, "cri.reopen_container_log"), request, async |request| {
            container::reopen_log(&self.engine, request).await
        })
        .await
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        answer(request_span!(DEBUG, "cri.exec_sync"), request, async |request| {
            exec::exec_sync(&self.engine, request).await
        })
        .await
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        answer(request_span!(INFO, "cri.exec"), request, async |request| {
            stream::exec(&self.engine, &self.urls, request)
        })
        .await
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        answer(request_span!(INFO, "cri.attach"), request, async |request| {
            stream::attach(&self.engine, &self.urls, request)
        })
        .await
    }

    async fn port_forward(
        &self,
        request: Request<PortForwardRequest>,
    ) -> Answer<PortForwardResponse> {
        answer(request_span!(INFO, "cri.port_forward"), request, async |request| {
            stream::port_forward(&self.engine, &self.urls, request)
        })
        .await
    }

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Answer<ContainerStatsResponse> {
        answer(request_span!(DEBUG, "cri.container_stats"), request, async |request| {
            stats::container(self, request).await
        })
        .await
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answer<Encoded> {
        answer(request_span!(DEBUG, "cri.list_container_stats"), request, async |request| {
            stats::containers(self, request).await
        })
        .await
    }

    type StreamContainerStatsStream = Parts<StreamContainerStatsResponse>;
    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        answer(request_span!(DEBUG, "cri.stream_container_stats"), request, async |request| {
            stats::stream_containers(self, request).await
        })
        .await
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Answer<PodSandboxStatsResponse> {
        answer(request_span!(DEBUG, "cri.pod_sandbox_stats"), request, async |request| {
            stats::sandbox(self, request).await
        })
        .await
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<Encoded> {
        answer(request_span!(DEBUG, "cri.list_pod_sandbox_stats"), request, async |request| {
            stats::sandboxes(self, request).await
        })
        .await
    }

    type StreamPodSandboxStatsStream = Parts<StreamPodSandboxStatsResponse>;
    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        answer(request_span!(DEBUG, "cri.stream_pod_sandbox_stats"), request, async |request| {
            stats::stream_sandboxes(self, request).await
        })
        .await
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        answer(request_span!(DEBUG, "cri.update_runtime_config"), request, async |request| {
            node::update_runtime_config(&self.engine, request).await
        })
        .await
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        answer(request_span!(DEBUG, "cri.status"), request, async |request| {
            let mut answer = node::status(&self.engine, request).await?;
            if !answer.info.is_empty() {
                node::describe(&mut answer.info, &self.engine, &self.urls, &self.config).await;
            }
            Ok(answer)
        })
        .await
    }

    async fn checkpoint_container(
        &self,
        request: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        answer(request_span!(DEBUG, "cri.checkpoint_container"), request, async |_| {
            Err(Error::CheckpointsOff)
        })
        .await
    }

    type GetContainerEventsStream = Parts<ContainerEventResponse>;
    async fn get_container_events(
        &self,
        request: Request<GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        let after = events::after(request.metadata());
        answer(request_span!(DEBUG, "cri.get_container_events"), request, async |_| {
            events::events(&self.engine, after?).await
        })
        .await
    }

    async fn list_metric_descriptors(
        &self,
        request: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        answer(request_span!(DEBUG, "cri.list_metric_descriptors"), request, async |request| {
            metrics::descriptors(request).await
        })
        .await
    }

    async fn list_pod_sandbox_metrics(
        &self,
        request: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        answer(request_span!(DEBUG, "cri.list_pod_sandbox_metrics"), request, async |request| {
            metrics::list(self, request).await
        })
        .await
    }

    type StreamPodSandboxMetricsStream = Parts<StreamPodSandboxMetricsResponse>;
    async fn stream_pod_sandbox_metrics(
        &self,
        request: Request<StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        answer(request_span!(DEBUG, "cri.stream_pod_sandbox_metrics"), request, async |request| {
            metrics::stream(self, request).await
        })
        .await
    }

    async fn runtime_config(
        &self,
        request: Request<RuntimeConfigRequest>,
    ) -> Answer<RuntimeConfigResponse> {
        answer(request_span!(DEBUG, "cri.runtime_config"), request, async |request| {
            node::runtime_config(&self.engine, request).await
        })
        .await
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Answer<UpdatePodSandboxResourcesResponse> {
        answer(request_span!(INFO, "cri.update_pod_sandbox_resources"), request, async |request| {
            sandbox::update(&self.engine, request).await
        })
        .await
    }
}

#[tonic::async_trait]
impl ImageService for Service {
    async fn list_images(&self, request: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        answer(request_span!(DEBUG, "cri.list_images"), request, async |request| {
            images::list(&self.engine, request).await
        })
        .await
    }

    type StreamImagesStream = Parts<StreamImagesResponse>;
    async fn stream_images(
        &self,
        request: Request<StreamImagesRequest>,
    ) -> Answer<Self::StreamImagesStream> {
        answer(request_span!(DEBUG, "cri.stream_images"), request, async |request| {
            images::list_in_parts(&self.engine, request).await
        })
        .await
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Answer<ImageStatusResponse> {
        answer(request_span!(DEBUG, "cri.image_status"), request, async |request| {
            images::status(&self.engine, request).await
        })
        .await
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        answer(request_span!(INFO, "cri.pull_image"), request, async |request| {
            images::pull(&self.engine, request).await
        })
        .await
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Answer<RemoveImageResponse> {
        answer(request_span!(INFO, "cri.remove_image"), request, async |request| {
            images::remove(&self.engine, request).await
        })
        .await
    }

    async fn image_fs_info(
        &self,
        request: Request<ImageFsInfoRequest>,
    ) -> Answer<ImageFsInfoResponse> {
        answer(request_span!(DEBUG, "cri.image_fs_info"), request, async |request| {
            images::fs_info(&self.engine, request).await
        })
        .await
    }
}
