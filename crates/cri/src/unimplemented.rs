//! RPCs that a later version will answer.

use tonic::{Request, Response, Status};

use crate::{Error, edge};

/// Refuses the RPC by its name. kubelet falls back to the plain lists on this code.
pub(crate) async fn refuse<Q, A>(
    rpc: &'static str,
    request: Request<Q>,
) -> Result<Response<A>, Status> {
    let span = edge::request_span!(DEBUG, "cri.unimplemented");
    edge::answer(span, request, async |_| Err(Error::Unimplemented(rpc))).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_rpc_is_named() {
        let refused = refuse::<_, ()>("StreamImages", Request::new(())).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unimplemented);
        assert!(refused.message().contains("StreamImages"), "{refused}");
    }
}
