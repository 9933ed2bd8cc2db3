use berth_model::Reference;
use berth_registry::{Auth, Client, Config, Error, Proxies};

use crate::support::{Reply, Server, all_of, config};

fn through(proxy: &Server, direct: &str) -> Config {
    let address = format!("http://user:proxy-password@{}", proxy.address);
    let proxies = Proxies { http: address.clone(), https: address, direct: direct.into() };
    Config { proxies, plain_http: vec!["r.example".into()], ..config() }
}

#[tokio::test]
async fn plain_http_is_forwarded_by_the_proxy() {
    let proxy = Server::start(|_| Reply::manifest("{}")).await;
    let client = Client::new(through(&proxy, "")).unwrap();
    let reference: Reference = "r.example/a:t".parse().unwrap();
    let auth = Some(Auth::RegistryToken("token".into()));
    client.repository(&reference, auth).resolve().await.unwrap();
    let request = &proxy.requests()[0];
    assert_eq!(request.target, "http://r.example/v2/a/manifests/t");
    assert!(request.header("proxy-authorization").is_some_and(|it| it.starts_with("Basic ")));
    assert_eq!(request.authorization(), Some("Bearer token"));
}

#[tokio::test]
async fn loopback_is_reached_directly() {
    let proxy = Server::start(|_| Reply::status(500)).await;
    let server = Server::start(|_| Reply::manifest("{}")).await;
    let client = Client::new(through(&proxy, "")).unwrap();
    client.repository(&server.reference("a"), None).resolve().await.unwrap();
    assert_eq!(server.requests()[0].header("proxy-authorization"), None);
    assert!(proxy.requests().is_empty());
}

#[tokio::test]
async fn a_proxy_that_is_down_is_an_error_without_its_password() {
    let proxy = Server::start(|_| Reply::status(500)).await;
    let config = through(&proxy, "");
    drop(proxy);
    tokio::task::yield_now().await;
    let client = Client::new(config).unwrap();
    for reference in ["r.example/a", "tls.example/a"] {
        let reference: Reference = reference.parse().unwrap();
        let error = client.repository(&reference, None).resolve().await.unwrap_err();
        assert!(matches!(error, Error::Connect { .. }), "{error}");
        assert!(!all_of(&error).contains("proxy-password"), "{}", all_of(&error));
    }
    assert!(!format!("{client:?}").contains("proxy-password"), "{client:?}");
}
