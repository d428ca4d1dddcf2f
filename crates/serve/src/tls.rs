//! Certificates: who the server is, and whom it asks for a certificate in turn.

use std::path::Path;
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::ServeError;
use crate::settings::ServeSettings;

/// TLS as the settings ask for it, or none; `protocols` are offered by ALPN.
///
/// # Errors
/// When a file cannot be read or does not hold what it should.
pub fn config(
    settings: &ServeSettings,
    protocols: &[&str],
) -> Result<Option<Arc<ServerConfig>>, ServeError> {
    let Some((chain_path, key_path)) = &settings.tls else {
        return Ok(None);
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = certificates("--tls-cert", chain_path)?;
    let key = PrivateKeyDer::from_pem_file(key_path)
        .map_err(|error| bad("--tls-key", key_path, error.to_string()))?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| ServeError::Bug(error.to_string()))?;
    let builder = match &settings.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("--tls-client-ca", path)? {
                roots
                    .add(certificate)
                    .map_err(|error| bad("--tls-client-ca", path, error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| bad("--tls-client-ca", path, error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| bad("--tls-key", key_path, error.to_string()))?;
    config.alpn_protocols = protocols
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    Ok(Some(Arc::new(config)))
}

fn certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, ServeError> {
    let found: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| bad(what, path, error.to_string()))?;
    if found.is_empty() {
        return Err(bad(what, path, "it holds no certificate (PEM)".to_owned()));
    }
    Ok(found)
}

fn bad(what: &'static str, path: &Path, reason: String) -> ServeError {
    ServeError::Certificate {
        what,
        path: path.display().to_string(),
        reason,
    }
}
