//! What the host alone takes of a call: a server that reads a request and sends the same bytes each time, and does
//! nothing else. One thread, one call to the kernel for each of the two, no parser, and no memory of its own that
//! belongs to a connection. What this one loses with many connections, or takes of any call, is the kernel's: no
//! server can be without it.
//!
//! Not an HTTP server: a request is taken to come whole, as those of the load do.

use std::{
    env, fs,
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
};

use rustix::{
    buffer::spare_capacity,
    event::epoll::{self, CreateFlags, EventData, EventFlags},
};
use socket2::{Domain, Socket, Type};

use crate::{
    Result,
    caller::Caller,
    lab::{Lab, Server, pin},
};

/// What the command line says to be this server; then comes the file with the bytes to send.
pub(crate) const NAME: &str = "--floor";
const REQUEST_BYTES_MAX: usize = 64 << 10;
/// As many as an I/O thread of bigiron is told of at once.
const READY_AT_ONCE: usize = 61;
const BACKLOG: i32 = 8192;
/// No connection has so high a number.
const LISTENER: u64 = u64::MAX;

/// Starts it on the cores of the servers. It sends what came last to the caller.
pub(crate) fn start(lab: &Lab, like: &Caller) -> Result<Server> {
    let answer = lab.folder.join("answer");
    fs::write(&answer, like.reply().text())?;
    let mut command = Command::new(env::current_exe()?);
    command.arg(NAME).arg(answer).stdin(Stdio::null()).stdout(Stdio::piped());
    pin(&lab.cores.0)?;
    let child = command.spawn();
    pin(&lab.all_cores())?;
    let mut child = child?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    let address: SocketAddr = line.trim().parse()?;
    Ok(Server { child, address, admin: address })
}

/// Is that server, until it is killed.
pub(crate) fn serve(answer: &str) -> Result<()> {
    let answer = fs::read(answer)?;
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    listener.listen(BACKLOG)?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from(listener);
    println!("{}", listener.local_addr()?);
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    let mut connections: Vec<Option<TcpStream>> = Vec::new();
    let (mut request, mut ready) = (vec![0; REQUEST_BYTES_MAX], Vec::with_capacity(READY_AT_ONCE));
    loop {
        epoll::wait(&epoll, spare_capacity(&mut ready), None)?;
        for event in ready.drain(..) {
            let which = event.data.u64();
            if which == LISTENER {
                while let Some(connection) = accept(&listener)? {
                    let number = EventData::new_u64(connections.len() as u64);
                    epoll::add(&epoll, &connection, number, EventFlags::IN | EventFlags::RDHUP | EventFlags::ET)?;
                    connections.push(Some(connection));
                }
                continue;
            }
            let place = usize::try_from(which).ok().and_then(|which| connections.get_mut(which));
            let Some(place @ Some(_)) = place else { continue };
            if !answered(place.as_mut(), &mut request, &answer) {
                *place = None;
            }
        }
    }
}

fn accept(listener: &TcpListener) -> Result<Option<TcpStream>> {
    match listener.accept() {
        Ok((connection, _)) => {
            connection.set_nonblocking(true)?;
            connection.set_nodelay(true)?;
            Ok(Some(connection))
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether the connection goes on.
fn answered(connection: Option<&mut TcpStream>, request: &mut [u8], answer: &[u8]) -> bool {
    let Some(connection) = connection else { return false };
    match connection.read(request) {
        Ok(0) => false,
        Ok(_) => connection.write_all(answer).is_ok(),
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}
