//! The first messages of a connection: who is it?

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion_postgres::pgwire::api::auth::{
    DefaultServerParameterProvider, StartupHandler, finish_authentication, protocol_negotiation,
    save_startup_parameters_to_metadata,
};
use datafusion_postgres::pgwire::api::{
    ClientInfo, METADATA_USER, PgWireConnectionState, PidSecretKeyGenerator,
    RandomPidSecretKeyGenerator,
};
use datafusion_postgres::pgwire::error::{PgWireError, PgWireResult};
use datafusion_postgres::pgwire::messages::startup::Authentication;
use datafusion_postgres::pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage};
use futures::{Sink, SinkExt};

use super::{Cancels, PROTOCOL, Registered, Running, pg_error};
use crate::auth::{Credentials, Gate};
use crate::error::ServeError;
use crate::service::{Asker, Service};

pub(super) struct Startup {
    gate: Arc<Gate>,
    service: Arc<Service>,
    numbers: RandomPidSecretKeyGenerator,
    parameters: DefaultServerParameterProvider,
    pub(super) cancels: Arc<Cancels>,
}

impl Startup {
    pub(super) fn new(gate: Arc<Gate>, service: Arc<Service>) -> Self {
        let mut parameters = DefaultServerParameterProvider::default();
        parameters.server_version = super::catalog::SERVER_VERSION.to_owned();
        parameters.is_superuser = false;
        parameters.default_transaction_read_only = true;
        Self {
            gate,
            service,
            numbers: RandomPidSecretKeyGenerator::default(),
            parameters,
            cancels: Arc::default(),
        }
    }

    async fn welcome<C>(&self, client: &mut C, password: Option<String>) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let name = client
            .metadata()
            .get(METADATA_USER)
            .cloned()
            .unwrap_or_default();
        let credentials = Credentials::Basic {
            name,
            password: password.unwrap_or_default(),
        };
        let address = client.socket_addr().ip();
        let user = match self.gate.check(address, Some(&credentials)).await {
            Ok(user) => user,
            Err(error) => {
                self.service.metrics().denied.inc();
                tracing::warn!(protocol = PROTOCOL, %address, "denied");
                return Err(pg_error(&error));
            }
        };
        if self.service.is_stopping() {
            return Err(pg_error(&ServeError::Stopping));
        }
        let (number, key) = self.numbers.generate(client);
        let (running, registered) = self.cancels.add(number, key.clone());
        client.set_pid_and_secret_key(number, key);
        let extensions = client.session_extensions();
        extensions.insert::<Arc<Running>>(running);
        extensions.insert::<Registered>(registered);
        extensions.insert::<Asker>(Asker {
            user,
            protocol: PROTOCOL,
            parent: None,
        });
        finish_authentication(client, &self.parameters).await
    }
}

#[async_trait]
impl StartupHandler for Startup {
    async fn on_startup<C>(
        &self,
        client: &mut C,
        message: PgWireFrontendMessage,
    ) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        match message {
            PgWireFrontendMessage::Startup(startup) => {
                protocol_negotiation(client, &startup).await?;
                save_startup_parameters_to_metadata(client, &startup);
                if !self.gate.is_closed() {
                    return self.welcome(client, None).await;
                }
                client.set_state(PgWireConnectionState::AuthenticationInProgress);
                client
                    .send(PgWireBackendMessage::Authentication(
                        Authentication::CleartextPassword,
                    ))
                    .await?;
                Ok(())
            }
            PgWireFrontendMessage::PasswordMessageFamily(message)
                if matches!(
                    client.state(),
                    PgWireConnectionState::AuthenticationInProgress
                ) =>
            {
                let password = message.into_password()?.password;
                self.welcome(client, Some(password)).await
            }
            _ => Err(pg_error(&ServeError::Message(
                "expected a startup message".to_owned(),
            ))),
        }
    }
}
