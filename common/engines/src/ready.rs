//! Does a daemon answer? Each probe asks a real question, because a socket that accepts connections may belong to a daemon
//! that is still starting.

use std::path::Path;
use std::time::Duration;

use mallee_ovsdb::Client;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::error::{Error, Result};
use crate::plan::Ready;

const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

impl Ready {
    /// Asks once; an error says what is missing.
    pub async fn probe(&self, pid: i32) -> std::result::Result<(), String> {
        match tokio::time::timeout(PROBE_TIMEOUT, self.ask(pid)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {} s", PROBE_TIMEOUT.as_secs())),
        }
    }

    async fn ask(&self, pid: i32) -> std::result::Result<(), String> {
        match self {
            Ready::Database { socket, name } => {
                let client = Client::connect_unix(socket).await.map_err(|error| error.to_string())?;
                let databases = client.databases().await.map_err(|error| error.to_string())?;
                if databases.contains(name) {
                    return Ok(());
                }
                Err(format!("it does not serve {name}"))
            }
            Ready::Control { socket, method, expect } => {
                let socket = socket.replace("{pid}", &pid.to_string());
                let answer = control(Path::new(&socket), method, &[]).await.map_err(|error| error.to_string())?;
                if answer.contains(expect) {
                    return Ok(());
                }
                Err(format!("{method}: {}", answer.trim()))
            }
            Ready::Libvirt { socket } => ask_libvirt(socket).await.map_err(|error| error.to_string()),
            Ready::Unix { socket } => connected(UnixStream::connect(socket).await),
            Ready::Tcp { address } => connected(TcpStream::connect(address).await),
        }
    }
}

fn connected<S>(stream: std::io::Result<S>) -> std::result::Result<(), String> {
    stream.map(drop).map_err(|error| error.to_string())
}

/// What `ovs-appctl -t SOCKET METHOD ARGUMENTS` prints.
pub async fn control(socket: &Path, method: &str, arguments: &[&str]) -> Result<String> {
    let client = Client::connect_unix(socket).await?;
    let answer = client.request(method, json!(arguments)).await?;
    answer
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| Error::System(format!("{} answered {method} with {answer}", socket.display())))
}

/// libvirtd accepts connections while it still starts its drivers, and answers only after; so a real call is made: the list of
/// authentication methods, which is always allowed (libvirt's remote_protocol.x).
async fn ask_libvirt(socket: &Path) -> std::io::Result<()> {
    const LENGTH: u32 = 28;
    const PROGRAM: u32 = 0x2000_8086;
    const VERSION: u32 = 1;
    const AUTH_LIST: u32 = 66;
    let (call, serial, status) = (0, 1, 0);
    let mut stream = UnixStream::connect(socket).await?;
    for word in [LENGTH, PROGRAM, VERSION, AUTH_LIST, call, serial, status] {
        stream.write_u32(word).await?;
    }
    stream.read_u32().await.map(drop)
}
