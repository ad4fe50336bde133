//! Connections: one server, Sentinel or Cluster, behind one pool and one wire.
//!
//! Used by every file of this engine that talks to Redis. Each unit of work takes one [`Wire`] and keeps it to
//! its end, since the pool sends two commands at every checkout. Every wait is bounded here, whatever the
//! library's own timeouts do: with Redis hung, an idle connection looks healthy until it is asked.

use super::options::{Place, RedisOptions};
use crate::store::StoreError;
use deadpool_redis::redis::aio::ConnectionLike;
use deadpool_redis::redis::cluster_routing::{Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr};
use deadpool_redis::redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, RedisFuture, ScriptInvocation,
    ServerErrorKind, Value, from_redis_value, pipe,
};
use deadpool_redis::{PoolConfig, PoolError, Runtime, TimeoutType, Timeouts, cluster, sentinel};
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// The pool, whichever kind it is.
enum Pool {
    Server(deadpool_redis::Pool),
    Sentinel(sentinel::Pool),
    Cluster(cluster::Pool),
}

/// One connection of the pool.
enum Conn {
    Server(deadpool_redis::Connection),
    Sentinel(sentinel::Connection),
    Cluster(cluster::Connection),
}

/// The way to Redis.
pub struct Link {
    pool: Pool,
    address: Arc<str>,
    checkout: Duration,
    command: Duration,
}

impl Link {
    /// Makes the pool; connects to nothing yet.
    ///
    /// # Errors
    /// [`StoreError::Engine`] when the library refuses the address.
    pub fn new(options: &RedisOptions) -> Result<Self, StoreError> {
        let address: Arc<str> = options.url.masked().into();
        let timeouts = Timeouts {
            wait: Some(options.wait_timeout),
            create: Some(options.connect_timeout),
            recycle: Some(options.command_timeout),
        };
        let config = PoolConfig { timeouts, ..PoolConfig::new(options.pool_size) };
        let failed = |e: &dyn Display| engine(&address, e);
        macro_rules! pool {
            ($manager:expr, $kind:ty) => {
                <$kind>::builder($manager.map_err(|e| failed(&e))?)
                    .config(config)
                    .runtime(Runtime::Tokio1)
                    .build()
                    .map_err(|e| failed(&e))?
            };
        }
        let pool = match &options.url.place {
            Place::Server(info) => {
                let timeouts = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(options.connect_timeout))
                    .set_response_timeout(Some(options.command_timeout));
                let manager = deadpool_redis::Manager::new_with_config(*info.clone(), timeouts);
                Pool::Server(pool!(manager, deadpool_redis::Pool))
            }
            Place::Sentinel { sentinels, service, server } => {
                let secure = matches!(server.addr(), deadpool_redis::redis::ConnectionAddr::TcpTls { .. });
                let login = sentinel::SentinelNodeConnectionInfo {
                    tls_mode: secure.then_some(sentinel::TlsMode::Secure),
                    redis_connection_info: Some(server.redis_settings().clone().into()),
                };
                let kind = sentinel::SentinelServerType::Master;
                let manager = sentinel::Manager::new(sentinels.clone(), service.clone(), Some(login), kind);
                Pool::Sentinel(pool!(manager, sentinel::Pool))
            }
            Place::Cluster(nodes) => Pool::Cluster(pool!(cluster::Manager::new(nodes.clone(), false), cluster::Pool)),
        };
        let checkout = options.wait_timeout + options.connect_timeout;
        Ok(Self { pool, address, checkout, command: options.command_timeout })
    }

    /// The address for people.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Waits for `turn` no longer than for a connection.
    ///
    /// # Errors
    /// [`StoreError::Engine`] when it does not come in time.
    pub async fn bounded<T>(&self, turn: impl Future<Output = T>) -> Result<T, StoreError> {
        timeout(self.checkout, turn).await.map_err(|_| engine(&self.address, &"too many writes are waiting for it"))
    }

    /// Takes a connection for one unit of work.
    ///
    /// # Errors
    /// [`StoreError::Engine`] with the masked address when there is none within the timeouts.
    pub async fn wire(&self) -> Result<Wire, StoreError> {
        macro_rules! taken {
            ($pool:expr, $conn:path) => {
                timeout(self.checkout, $pool.get()).await.map(|got| got.map($conn).map_err(|e| self.no_wire(e)))
            };
        }
        let taken = match &self.pool {
            Pool::Server(pool) => taken!(pool, Conn::Server),
            Pool::Sentinel(pool) => taken!(pool, Conn::Sentinel),
            Pool::Cluster(pool) => taken!(pool, Conn::Cluster),
        };
        let mut conn =
            taken.map_err(|_| engine(&self.address, &format!("no connection within {:?}", self.checkout)))??;
        if let Conn::Sentinel(conn) = &mut conn {
            // This kind of pool has no setting for it, and the library's own half second is too short for lists.
            conn.set_response_timeout(self.command);
        }
        Ok(Wire { conn: Some(conn), address: self.address.clone(), command: self.command })
    }
}

impl Link {
    fn no_wire(&self, error: PoolError) -> StoreError {
        match error {
            PoolError::Backend(error) => engine(&self.address, &error),
            PoolError::Timeout(TimeoutType::Wait) => engine(&self.address, &"every connection is in use"),
            PoolError::Timeout(_) => engine(&self.address, &"it does not answer in time"),
            other => engine(&self.address, &other),
        }
    }
}

/// What Redis or the library said, as a store's error with the address it was about.
fn engine(address: &str, error: &dyn Display) -> StoreError {
    StoreError::Engine(format!("{address}: {error}"))
}

/// A connection in use. One that failed does not go back to the pool.
pub struct Wire {
    conn: Option<Conn>,
    address: Arc<str>,
    command: Duration,
}

/// Asks on a wire's connection, bounded in time.
macro_rules! ask {
    ($wire:expr, $conn:ident => $ask:expr) => {{
        let Some($conn) = &mut $wire.conn else {
            return Err(engine(&$wire.address, &"the connection was lost"));
        };
        match timeout($wire.command, $ask).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err($wire.failed(&error)),
            Err(_) => {
                let problem = format!("no answer within {:?}", $wire.command);
                $wire.discard();
                Err(engine(&$wire.address, &problem))
            }
        }
    }};
}

impl Wire {
    /// Sends one command.
    ///
    /// # Errors
    /// [`StoreError::Engine`] when Redis refuses it or does not answer in time.
    pub async fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, StoreError> {
        ask!(self, conn => command.query_async(conn))
    }

    /// Sends several commands of one slot in one go.
    ///
    /// # Errors
    /// The same.
    pub async fn ask_all<T: FromRedisValue>(&mut self, commands: &Pipeline) -> Result<T, StoreError> {
        ask!(self, conn => commands.query_async(conn))
    }

    /// Sends many commands of one slot, in parts: so each part is answered within the timeout, and none fills
    /// Redis' output buffer.
    ///
    /// # Errors
    /// The same.
    pub async fn ask_many<T: FromRedisValue>(&mut self, commands: &[Cmd]) -> Result<Vec<T>, StoreError> {
        let mut answers = Vec::with_capacity(commands.len());
        for part in commands.chunks(50) {
            let mut all = pipe();
            for command in part {
                all.add_command(command.clone());
            }
            answers.extend(self.ask_all::<Vec<T>>(&all).await?);
        }
        Ok(answers)
    }

    /// Sends commands of any slots: as [`Wire::ask_many`] to a server, one by one to a Cluster.
    ///
    /// # Errors
    /// The same.
    pub async fn ask_each<T: FromRedisValue>(&mut self, commands: &[Cmd]) -> Result<Vec<T>, StoreError> {
        if !matches!(self.conn, Some(Conn::Cluster(_))) {
            return self.ask_many(commands).await;
        }
        let mut answers = Vec::with_capacity(commands.len());
        for command in commands {
            answers.push(self.ask(command).await?);
        }
        Ok(answers)
    }

    /// Runs a script; loads it first where Redis does not know it (any more).
    ///
    /// # Errors
    /// The same.
    pub async fn run<T: FromRedisValue>(&mut self, script: &ScriptInvocation<'_>) -> Result<T, StoreError> {
        ask!(self, conn => script.invoke_async(conn))
    }

    /// Sends a command that names no key to the node that holds `key`.
    ///
    /// # Errors
    /// The same.
    pub async fn ask_at<T: FromRedisValue>(&mut self, key: &str, command: Cmd) -> Result<T, StoreError> {
        let node = RoutingInfo::SingleNode(SingleNodeRoutingInfo::SpecificNode(Route::with_key(key, SlotAddr::Master)));
        let answer: Value = match &mut self.conn {
            Some(Conn::Cluster(_)) => ask!(self, conn => async {
                match conn {
                    Conn::Cluster(conn) => conn.route_command(command, node).await,
                    _ => command.query_async(conn).await,
                }
            })?,
            _ => self.ask(&command).await?,
        };
        from_redis_value(answer).map_err(|e| engine(&self.address, &e))
    }

    fn failed(&mut self, error: &RedisError) -> StoreError {
        // A connection to what became a replica would look healthy for ever.
        let replica = error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly);
        if replica || error.is_io_error() || error.is_unrecoverable_error() {
            self.discard();
        }
        engine(&self.address, error)
    }

    fn discard(&mut self) {
        match self.conn.take() {
            Some(Conn::Server(conn)) => drop(deadpool_redis::Connection::take(conn)),
            Some(Conn::Sentinel(conn)) => drop(sentinel::Connection::take(conn)),
            Some(Conn::Cluster(conn)) => drop(cluster::Connection::take(conn)),
            None => {}
        }
    }
}

impl ConnectionLike for Conn {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Server(conn) => conn.req_packed_command(command),
            Self::Sentinel(conn) => conn.req_packed_command(command),
            Self::Cluster(conn) => conn.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        commands: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Server(conn) => conn.req_packed_commands(commands, offset, count),
            Self::Sentinel(conn) => conn.req_packed_commands(commands, offset, count),
            Self::Cluster(conn) => conn.req_packed_commands(commands, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Server(conn) => conn.get_db(),
            Self::Sentinel(conn) => conn.get_db(),
            Self::Cluster(conn) => conn.get_db(),
        }
    }
}
