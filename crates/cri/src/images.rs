//! Pull, list, describe and remove images.

use berth_api::v1::*;
use berth_engine::{Auth, Engine};
use berth_model::Reference;
use berth_model::image::ImageRecord;
use serde_json::json;
use tracing::Span;

use crate::batch::{Parts, parts};
use crate::translate::image;
use crate::{Error, node};

pub(crate) async fn list(
    engine: &Engine,
    request: ListImagesRequest,
) -> Result<ListImagesResponse, Error> {
    let records = selected(engine, request.filter).await?;
    Ok(ListImagesResponse { images: records.iter().map(image).collect() })
}

pub(crate) async fn list_in_parts(
    engine: &Engine,
    request: StreamImagesRequest,
) -> Result<Parts<StreamImagesResponse>, Error> {
    let records = selected(engine, request.filter).await?.into_iter();
    let images = records.map(|record| image(&record));
    Ok(parts(images, |images| StreamImagesResponse { images }))
}

async fn selected(engine: &Engine, filter: Option<ImageFilter>) -> Result<Vec<ImageRecord>, Error> {
    let wanted = filter.and_then(|filter| filter.image).unwrap_or_default().image;
    Ok(match wanted.as_str() {
        "" => engine.images().await?,
        name => engine.image_status(name).await?.into_iter().collect(),
    })
}

pub(crate) async fn status(
    engine: &Engine,
    request: ImageStatusRequest,
) -> Result<ImageStatusResponse, Error> {
    let record = engine.image_status(&named(request.image)?).await?;
    let info = record.as_ref().filter(|_| request.verbose).map(|record| {
        let chain: Vec<_> = record.chain.iter().map(ToString::to_string).collect();
        node::info(&json!({
            "manifest": record.manifest.to_string(),
            "chain": chain,
            "user": record.user,
            "pulledAt": record.pulled_at.0,
        }))
    });
    let image = record.as_ref().map(image);
    Ok(ImageStatusResponse { image, info: info.unwrap_or_default() })
}

pub(crate) async fn pull(
    engine: &Engine,
    request: PullImageRequest,
) -> Result<PullImageResponse, Error> {
    let name = named(request.image)?;
    let reference: Reference =
        name.parse().map_err(|source| Error::Reference { field: "image.image", source })?;
    let auth = request.auth.map(credentials).transpose()?.flatten();
    let pulled = engine.pull_image(&reference, auth).await;
    let record = pulled.map_err(|error| match error.is_registry_unavailable() {
        true => Error::RegistryUnavailable(error),
        false => Error::Engine(error),
    })?;
    Ok(PullImageResponse { image_ref: record.id.to_string() })
}

pub(crate) async fn remove(
    engine: &Engine,
    request: RemoveImageRequest,
) -> Result<RemoveImageResponse, Error> {
    engine.remove_image(&named(request.image)?).await?;
    Ok(RemoveImageResponse {})
}

pub(crate) async fn fs_info(
    engine: &Engine,
    _: ImageFsInfoRequest,
) -> Result<ImageFsInfoResponse, Error> {
    let info = engine.image_fs_info().await?;
    let mountpoint = info.mountpoint.to_string_lossy().into_owned();
    let usage = FilesystemUsage {
        timestamp: info.at.0,
        fs_id: Some(FilesystemIdentifier { mountpoint }),
        used_bytes: Some(UInt64Value { value: info.used_bytes }),
        inodes_used: Some(UInt64Value { value: info.used_inodes }),
    };
    // Writable layers are on the same file system: kubelet wants them told apart only
    // where they are not.
    Ok(ImageFsInfoResponse { image_filesystems: vec![usage], container_filesystems: vec![] })
}

/// The name in the request; recorded in the request's span.
fn named(spec: Option<ImageSpec>) -> Result<String, Error> {
    let name = spec.map(|spec| spec.image).filter(|name| !name.is_empty());
    let name = name.ok_or(Error::Missing("image.image"))?;
    Span::current().record("image.ref", &name);
    Ok(name)
}

/// The credentials given, for the host that they name. Without one they are the image's
/// registry's, and no mirror's.
fn credentials(config: AuthConfig) -> Result<Option<Auth>, Error> {
    let host = server_host(&config.server_address);
    let Some(auth) = auth(config)? else { return Ok(None) };
    Ok(Some(match host {
        None => auth,
        Some(host) => Auth::OfHost { host, auth: Box::new(auth) },
    }))
}

/// Host and port of `server`, which may be an address with scheme and path.
fn server_host(server: &str) -> Option<String> {
    let host = server.split_once("://").map_or(server, |(_, rest)| rest);
    let host = host.split('/').next().unwrap_or_default().to_ascii_lowercase();
    (!server.is_empty()).then_some(host)
}

/// The credentials given; the most specific kind wins.
fn auth(config: AuthConfig) -> Result<Option<Auth>, Error> {
    if !config.registry_token.is_empty() {
        return Ok(Some(Auth::RegistryToken(config.registry_token)));
    }
    if !config.identity_token.is_empty() {
        return Ok(Some(Auth::IdentityToken(config.identity_token)));
    }
    if !config.auth.is_empty() {
        let problem = "is not the base64 of user:password";
        let auth = Auth::from_encoded(&config.auth);
        return auth.map(Some).map_err(|_| Error::invalid("auth.auth", problem));
    }
    if config.username.is_empty() {
        return Ok(None);
    }
    Ok(Some(Auth::Basic { username: config.username, password: config.password }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i7_credentials_are_of_the_host_they_name() {
        for (server, expected) in [
            ("", None),
            ("docker.io", Some("docker.io")),
            ("https://index.docker.io/v1/", Some("index.docker.io")),
            ("http://127.0.0.1:5000/v2/", Some("127.0.0.1:5000")),
            ("R.Example:5000", Some("r.example:5000")),
            // Nobody is called so: they are shown to nobody.
            ("/", Some("")),
            ("https://", Some("")),
        ] {
            let (username, server_address) = ("u".to_owned(), server.to_owned());
            let config = AuthConfig { username, server_address, ..Default::default() };
            let found = match credentials(config).unwrap() {
                Some(Auth::OfHost { host, .. }) => Some(host),
                _ => None,
            };
            assert_eq!(found.as_deref(), expected, "{server}");
        }
        let nothing = AuthConfig { server_address: "r.example".into(), ..Default::default() };
        assert!(credentials(nothing).unwrap().is_none());
    }

    #[test]
    fn the_most_specific_credentials_win() {
        let mut config = AuthConfig::default();
        assert!(auth(config.clone()).unwrap().is_none());
        config.username = "u".to_owned();
        config.password = "p".to_owned();
        assert!(
            matches!(auth(config.clone()).unwrap(), Some(Auth::Basic { username, .. }) if username == "u")
        );
        config.auth = "YTpi".to_owned();
        assert!(
            matches!(auth(config.clone()).unwrap(), Some(Auth::Basic { username, .. }) if username == "a")
        );
        config.identity_token = "i".to_owned();
        assert!(matches!(auth(config.clone()).unwrap(), Some(Auth::IdentityToken(_))));
        config.registry_token = "r".to_owned();
        assert!(matches!(auth(config.clone()).unwrap(), Some(Auth::RegistryToken(_))));
    }

    #[test]
    fn i7_credentials_that_cannot_be_read_are_not_shown() {
        let config = AuthConfig { auth: "hunter2!".to_owned(), ..Default::default() };
        let Err(error) = auth(config) else { panic!("it is not base64") };
        assert!(!berth_model::chain(&error).contains("hunter2"), "{error}");
    }

    #[test]
    fn an_image_without_a_name_is_refused() {
        assert!(matches!(named(None), Err(Error::Missing("image.image"))));
        assert!(matches!(named(Some(ImageSpec::default())), Err(Error::Missing(_))));
    }
}
