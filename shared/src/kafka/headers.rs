//! The headers of a record, whatever bytes their names have.
#![expect(
    unsafe_code,
    reason = "rdkafka panics over a name that is not UTF-8 (BorrowedHeaders::try_get), and gives no other way to it"
)]

use std::ffi::CStr;
use std::{ptr, slice};

use rdkafka::bindings::{rd_kafka_header_cnt, rd_kafka_header_get_all, rd_kafka_message_headers};
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR;

/// A record's headers in their order; a name may come more than once. What is not UTF-8 in a name is U+FFFD.
pub type RecordHeaders = Vec<(String, Option<Vec<u8>>)>;

/// Copies the headers of `message` out of librdkafka's memory. None of them if they cannot be parsed.
#[must_use]
pub fn of(message: &BorrowedMessage<'_>) -> RecordHeaders {
    let mut headers = ptr::null_mut();
    // SAFETY: the message outlives this call, and its headers belong to it. librdkafka writes one pointer.
    let found = unsafe { rd_kafka_message_headers(message.ptr(), &raw mut headers) };
    if found != RD_KAFKA_RESP_ERR_NO_ERROR || headers.is_null() {
        return RecordHeaders::new();
    }
    // SAFETY: `headers` are those of the message.
    let count = unsafe { rd_kafka_header_cnt(headers) };
    let copy = |index| {
        let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
        // SAFETY: as above; librdkafka writes two pointers into the headers, and a length.
        let found = unsafe { rd_kafka_header_get_all(headers, index, &raw mut name, &raw mut value, &raw mut size) };
        if found != RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        // SAFETY: a name ends with a zero byte.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
        // SAFETY: a value has `size` bytes, if it is not null.
        let value = (!value.is_null()).then(|| unsafe { slice::from_raw_parts(value.cast::<u8>(), size) }.to_vec());
        Some((name, value))
    };
    (0..count).map_while(copy).collect()
}
