use berth_model::{ErrorKind, Reference};
use berth_registry::{Auth, Client, Config, Error};

use crate::support::{Reply, Server, client, config};

fn password() -> Option<Auth> {
    Some(Auth::Basic { username: "user".into(), password: "s3cret".into() })
}

/// The TLS server as a registry, by a name that is no loopback name: by a proxy whose
/// every tunnel leads to it.
async fn by_name(server: &Server, proxy: &Server, extra: Config) -> (Client, Reference) {
    let proxies = berth_registry::Proxies {
        https: format!("http://user:proxy-password@{}", proxy.address),
        ..Default::default()
    };
    let client = Client::new(Config { proxies, ..extra }).unwrap();
    let port = server.address.port();
    (client, format!("r.example:{port}/a").parse().unwrap())
}

async fn tunnels_to(server: &Server) -> Server {
    let target = server.address;
    Server::start(move |_| Reply::status(200).header("location", target)).await
}

#[tokio::test]
async fn a_registry_under_tls_is_reached_through_a_tunnel() {
    let server = Server::start_tls(|_| Reply::manifest("{}")).await;
    let proxy = tunnels_to(&server).await;
    let (client, reference) = by_name(&server, &proxy, config()).await;
    client.repository(&reference, None).resolve().await.unwrap();

    let connect = &proxy.requests()[0];
    assert_eq!(connect.method, "CONNECT");
    assert_eq!(connect.target, format!("r.example:{}", server.address.port()));
    assert!(connect.header("proxy-authorization").is_some_and(|it| it.starts_with("Basic ")));
    let request = &server.requests()[0];
    assert_eq!(request.target, "/v2/a/manifests/latest");
    assert_eq!(request.header("proxy-authorization"), None, "that was for the proxy");
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_refused_at_once() {
    let server = Server::start_tls(|_| Reply::manifest("{}")).await;
    let proxy = tunnels_to(&server).await;
    let untrusting = Config { certificate_authorities: Vec::new(), ..config() };
    let (client, reference) = by_name(&server, &proxy, untrusting).await;
    let error = client.repository(&reference, password()).resolve().await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(proxy.requests().len(), 1, "waiting makes no certificate valid");
    assert!(server.requests().is_empty());

    let (client, _) = by_name(&server, &proxy, config()).await;
    let other: Reference = format!("other.example:{}/a", server.address.port()).parse().unwrap();
    let error = client.repository(&other, password()).resolve().await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "another name: {error}");
}

#[tokio::test]
async fn a_registry_under_tls_leads_nobody_to_plain_http() {
    let loopback = Server::start(|_| Reply::manifest("{}")).await;
    let redirect = loopback.url("/x");
    let server = Server::start_tls(move |_| Reply::redirect(&redirect)).await;
    let proxy = tunnels_to(&server).await;
    let (client, reference) = by_name(&server, &proxy, config()).await;
    let error = client.repository(&reference, password()).resolve().await.unwrap_err();
    assert!(matches!(error, Error::Redirect { .. }), "{error}");
    assert!(loopback.requests().is_empty());

    let plain_http = vec![loopback.address.to_string()];
    let (client, reference) = by_name(&server, &proxy, Config { plain_http, ..config() }).await;
    client.repository(&reference, password()).resolve().await.unwrap();
    assert_eq!(loopback.requests().len(), 1, "but to a host that the configuration names");
}

#[tokio::test]
async fn a_token_service_without_tls_is_not_asked() {
    let service = Server::start(|_| Reply::ok(r#"{"token":"t"}"#)).await;
    let challenge = format!("Bearer realm=\"{}\"", service.url("/token"));
    let server = Server::start_tls(move |_| {
        Reply::status(401).header("www-authenticate", challenge.clone())
    })
    .await;
    let proxy = tunnels_to(&server).await;
    let plain_http = vec![service.address.to_string()];
    for config in [config(), Config { plain_http, ..config() }] {
        let (client, reference) = by_name(&server, &proxy, config).await;
        let error = client.repository(&reference, password()).resolve().await.unwrap_err();
        assert!(matches!(error, Error::Challenge { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    }
    assert!(service.requests().is_empty());

    // Nor by a registry on loopback, if the service is a host under nobody's control here.
    let challenge = "Bearer realm=\"http://192.0.2.1/token\"";
    let registry =
        Server::start(move |_| Reply::status(401).header("www-authenticate", challenge)).await;
    let repository = client().repository(&registry.reference("a"), password());
    let error = repository.resolve().await.unwrap_err();
    assert!(matches!(error, Error::Challenge { .. }), "{error}");
}

#[tokio::test]
async fn an_unreadable_authority_is_named() {
    let server = Server::start_tls(|_| Reply::manifest("{}")).await;
    let proxy = tunnels_to(&server).await;
    let certificate_authorities = vec!["/nonexistent/authority.pem".into()];
    let config = Config { certificate_authorities, ..config() };
    let (client, reference) = by_name(&server, &proxy, config).await;
    let error = client.repository(&reference, None).resolve().await.unwrap_err();
    assert!(error.to_string().contains("/nonexistent/authority.pem"), "{error}");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}
