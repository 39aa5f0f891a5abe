//! Writes down a chain of three datanodes on this machine and reads back, and prints how fast that was.
//!
//! `cargo run --release -p cairn-datanode --example chain_bench [MiB] [append KiB]`

use std::collections::VecDeque;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cairn_datanode::server::{Server, bind};
use cairn_datanode::settings::Settings;
use cairn_datanode::socket::{self, FrameReader, Socket};
use cairn_datanode::store::{Store, StoreConfig};
use cairn_proto::checksum::{BlockCrc, piece_crcs};
use cairn_proto::data::{
    Append, ChainLink, Hello, OpenChain, Read, Request, Response, Sync, request, response,
};
use cairn_proto::frame;

type Outcome<T> = Result<T, Box<dyn Error>>;

const CHUNK: u64 = 64 << 20;
const WINDOW: u64 = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(30);

struct Client {
    stream: Arc<Socket>,
    reader: FrameReader,
    payload: Vec<u8>,
}

impl Client {
    fn connect(address: &str) -> Outcome<Client> {
        let stream = Arc::new(socket::connect(address, PATIENCE, None, PATIENCE, PATIENCE)?);
        let mut client = Client { reader: FrameReader::new(stream.clone()), stream, payload: Vec::new() };
        client.send(request::Kind::Hello(Hello { version: 1, cluster_id: "bench".into() }), &[])?;
        client.receive()?;
        Ok(client)
    }

    fn send(&self, kind: request::Kind, payload: &[u8]) -> Outcome<()> {
        let head = frame::encode_head(&Request { kind: Some(kind), request: 0 }, payload.len())?;
        Ok(socket::write_frame(&self.stream, &head, payload, PATIENCE)?)
    }

    fn receive(&mut self) -> Outcome<(response::Kind, usize)> {
        let (head, length) = self.reader.head::<Response>(&mut |_| Ok(()))?.ok_or("closed")?;
        self.reader.payload(length, &mut self.payload, &mut |_| Ok(()))?;
        match head.kind.ok_or("empty")? {
            response::Kind::Failure(failure) => Err(format!("{failure:?}").into()),
            kind => Ok((kind, length)),
        }
    }

    fn acked(&mut self) -> Outcome<(u64, u64)> {
        match self.receive()? {
            (response::Kind::Ack(ack), _) => Ok((ack.length, ack.synced)),
            other => Err(format!("{other:?}").into()),
        }
    }

    fn write_chunk(address: &str, links: &[ChainLink], chunk: u64, data: &[u8], length: u64) -> Outcome<()> {
        let mut client = Client::connect(address)?;
        client.send(
            request::Kind::Open(OpenChain {
                chunk,
                length: 0,
                links: links.to_vec(),
                ..OpenChain::default()
            }),
            &[],
        )?;
        client.receive()?;
        let (mut tail, mut acked) = (BlockCrc::default(), 0);
        while tail.length() < length {
            let offset = tail.length();
            let part = &data[..data.len().min((length - offset) as usize)];
            let crcs = tail.append(part);
            client.send(request::Kind::Append(Append { offset, crcs }), part)?;
            while tail.length() - acked > WINDOW {
                acked = client.acked()?.0;
            }
        }
        while acked < length {
            acked = client.acked()?.0;
        }
        Ok(())
    }
}

fn rate(bytes: u64, since: Instant) -> f64 {
    bytes as f64 / since.elapsed().as_secs_f64() / f64::from(1 << 30)
}

fn median(mut times: Vec<Duration>) -> u128 {
    times.sort();
    times[times.len() / 2].as_micros()
}

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let total = args.next().map_or(Ok(1024), |arg| arg.parse::<u64>())? << 20;
    let part = args.next().map_or(Ok(1024), |arg| arg.parse::<usize>())? << 10;
    let base = std::env::temp_dir().join(format!("cairn-chain-bench-{}", std::process::id()));
    let mut servers = Vec::new();
    for name in ["a", "b", "c"] {
        let config = StoreConfig { dirs: vec![base.join(name)], ..StoreConfig::default() };
        let store = Store::open(&config)?;
        store.adopt_cluster("bench")?;
        servers.push(Server::start(bind("127.0.0.1:0".parse()?)?, Arc::new(store), Settings::default())?);
    }
    let addresses: Vec<String> = servers.iter().map(|server| server.local_addr().to_string()).collect();
    let link = |(node, address): (u32, &String)| ChainLink { node, address: address.clone() };
    let links: Vec<ChainLink> = (2..).zip(&addresses[1..]).map(link).collect();
    let data: Vec<u8> = (0..part).map(|i| (i * 31 % 251) as u8).collect();

    let chunks = total.div_ceil(CHUNK);
    let started = Instant::now();
    for chunk in 1..=chunks {
        Client::write_chunk(&addresses[0], &links, chunk, &data, CHUNK)?;
    }
    println!("write, {} KiB appends, 3 replicas: {:.2} GiB/s", part >> 10, rate(chunks * CHUNK, started));

    let mut reader = Client::connect(&addresses[2])?;
    let started = Instant::now();
    for chunk in 1..=chunks {
        reader.send(request::Kind::Read(Read { chunk, offset: 0, length: CHUNK, ..Read::default() }), &[])?;
        loop {
            let (kind, length) = reader.receive()?;
            let response::Kind::Data(data) = kind else { return Err("not data".into()) };
            if piece_crcs(data.offset, &reader.payload[..length]) != data.crcs {
                return Err("damaged".into());
            }
            if data.last {
                break;
            }
        }
    }
    println!("read, verified on both sides:      {:.2} GiB/s", rate(chunks * CHUNK, started));

    let mut times = Vec::new();
    for step in 0..2000u64 {
        let started = Instant::now();
        let offset = step * 4096 * 7 % (CHUNK - 4096);
        reader.send(
            request::Kind::Read(Read { chunk: 1 + step % chunks, offset, length: 4096, ..Read::default() }),
            &[],
        )?;
        reader.receive()?;
        times.push(started.elapsed());
    }
    println!("4 KiB read, one at a time:         {} us", median(times));

    let mut writer = Client::connect(&addresses[0])?;
    writer.send(
        request::Kind::Open(OpenChain { chunk: chunks + 1, length: 0, links, ..OpenChain::default() }),
        &[],
    )?;
    writer.receive()?;
    let (mut tail, mut small, mut synced, mut waiting) =
        (BlockCrc::default(), vec![], vec![], VecDeque::new());
    for step in 0..2200 {
        let started = Instant::now();
        let offset = tail.length();
        let crcs = tail.append(&data[..4096]);
        writer.send(request::Kind::Append(Append { offset, crcs }), &data[..4096])?;
        waiting.push_back(tail.length());
        let sync = step >= 2000;
        if sync {
            writer.send(request::Kind::Sync(Sync {}), &[])?;
        }
        while let Some(wanted) = waiting.front() {
            let (length, durable) = writer.acked()?;
            if length >= *wanted && (!sync || durable >= *wanted) {
                waiting.pop_front();
            }
        }
        if sync { synced.push(started.elapsed()) } else { small.push(started.elapsed()) }
    }
    println!("4 KiB append, one at a time:       {} us", median(small));
    println!("4 KiB append and sync:             {} us", median(synced));
    let started = Instant::now();
    let (first, last) = (servers[0].shared().store.clone(), chunks);
    for chunk in 1..=last {
        first.seal(chunk, CHUNK)?;
    }
    println!("seal (verify, BLAKE3, sync):       {:.2} GiB/s", rate(chunks * CHUNK, started));
    drop(servers);
    std::fs::remove_dir_all(&base)?;
    Ok(())
}
