//! Records that no client library makes: any bytes as header names, any timestamp. Written in Kafka's own protocol (Produce, version 3, and
//! record batches of version 2).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A record, every part as it goes over the wire.
#[derive(Debug, Clone, Default)]
pub struct RawRecord {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Milliseconds since 1970.
    pub time_ms: i64,
}

/// Produces `records`, each in a batch of its own. Returns Kafka's error code for each; 0 if the broker has taken it.
pub fn produce(broker: &str, topic: &str, partition: i32, records: &[RawRecord]) -> Vec<i16> {
    let mut broker = TcpStream::connect(broker).expect("a broker");
    broker.set_read_timeout(Some(Duration::from_secs(30))).expect("a time-out");
    let codes = records.iter().map(|record| {
        let batch = batch(record);
        let mut request = Vec::new();
        request.extend(0_i16.to_be_bytes()); // Produce
        request.extend(3_i16.to_be_bytes());
        request.extend(7_i32.to_be_bytes()); // correlation
        request.extend((-1_i16).to_be_bytes()); // no client id
        request.extend((-1_i16).to_be_bytes()); // no transaction
        request.extend((-1_i16).to_be_bytes()); // acks=all
        request.extend(30_000_i32.to_be_bytes());
        request.extend(1_i32.to_be_bytes()); // topics
        request.extend(length16(topic).to_be_bytes());
        request.extend(topic.as_bytes());
        request.extend(1_i32.to_be_bytes()); // partitions
        request.extend(partition.to_be_bytes());
        request.extend(length32(&batch).to_be_bytes());
        request.extend(batch);
        broker.write_all(&length32(&request).to_be_bytes()).expect("sent");
        broker.write_all(&request).expect("sent");
        let mut length = [0; 4];
        broker.read_exact(&mut length).expect("an answer");
        let mut answer = vec![0; usize::try_from(i32::from_be_bytes(length)).expect("a length")];
        broker.read_exact(&mut answer).expect("an answer");
        // Correlation, topics, name, partitions, partition; then the code.
        let code = 4 + 4 + 2 + topic.len() + 4 + 4;
        i16::from_be_bytes([answer[code], answer[code + 1]])
    });
    codes.collect()
}

fn length16(text: &str) -> i16 {
    i16::try_from(text.len()).expect("short")
}

fn length32(bytes: &[u8]) -> i32 {
    i32::try_from(bytes.len()).expect("below 2 GB")
}

fn batch(record: &RawRecord) -> Vec<u8> {
    let mut body = vec![0]; // attributes
    varint(&mut body, 0); // timestamp delta
    varint(&mut body, 0); // offset delta
    field(&mut body, record.key.as_deref());
    field(&mut body, record.value.as_deref());
    varint(&mut body, i64::try_from(record.headers.len()).expect("few"));
    for (name, value) in &record.headers {
        field(&mut body, Some(name));
        field(&mut body, value.as_deref());
    }
    let mut checked = Vec::new();
    checked.extend(0_i16.to_be_bytes()); // attributes
    checked.extend(0_i32.to_be_bytes()); // last offset delta
    checked.extend(record.time_ms.to_be_bytes());
    checked.extend(record.time_ms.to_be_bytes());
    checked.extend((-1_i64).to_be_bytes()); // producer id
    checked.extend((-1_i16).to_be_bytes()); // its epoch
    checked.extend((-1_i32).to_be_bytes()); // sequence
    checked.extend(1_i32.to_be_bytes()); // records
    varint(&mut checked, i64::try_from(body.len()).expect("short"));
    checked.extend(body);
    let mut batch = Vec::new();
    batch.extend(0_i64.to_be_bytes()); // base offset
    batch.extend((length32(&checked) + 9).to_be_bytes());
    batch.extend((-1_i32).to_be_bytes()); // leader epoch
    batch.push(2); // magic
    batch.extend(crc32c(&checked).to_be_bytes());
    batch.extend(checked);
    batch
}

/// Its length, -1 for none, and the bytes.
fn field(bytes: &mut Vec<u8>, value: Option<&[u8]>) {
    varint(bytes, value.map_or(-1, |value| i64::try_from(value.len()).expect("short")));
    bytes.extend(value.unwrap_or_default());
}

/// Zigzag, seven bits a byte.
fn varint(bytes: &mut Vec<u8>, value: i64) {
    let mut left = ((value << 1) ^ (value >> 63)).cast_unsigned();
    loop {
        let [low, ..] = left.to_le_bytes();
        left >>= 7;
        if left == 0 {
            bytes.push(low & 0x7f);
            return;
        }
        bytes.push(low | 0x80);
    }
}

/// Castagnoli's, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & 0_u32.wrapping_sub(crc & 1));
        }
    }
    !crc
}

#[test]
fn the_checksum_is_castagnolis() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}
