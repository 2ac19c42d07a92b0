//! As much of Kafka's protocol as a proxy needs: who sends a request, and to which partition a produce request goes.
//!
//! A frame is a length of four bytes (big-endian) and so many bytes. These functions are given the bytes behind the length.

use anyhow::{Context, Result, bail};

/// `api_key` of a produce request.
const PRODUCE: i16 = 0;

/// The first version whose lengths are varints ("flexible").
const FIRST_FLEXIBLE: i16 = 9;

/// The first version that names topics by their ids.
const FIRST_WITH_TOPIC_IDS: i16 = 13;

/// A produce request to one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Produce {
    version: i16,
    pub(crate) correlation: i32,
    pub(crate) topic: String,
    pub(crate) partition: i32,
}

/// Reads numbers and strings off the front of a frame.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).context("a frame ends too early")?;
        self.0 = rest;
        Ok(taken)
    }

    fn int16(&mut self) -> Result<i16> {
        Ok(i16::from_be_bytes(self.take(2)?.try_into()?))
    }

    fn int32(&mut self) -> Result<i32> {
        Ok(i32::from_be_bytes(self.take(4)?.try_into()?))
    }

    fn varint(&mut self) -> Result<usize> {
        let mut value = 0;
        for shift in (0..35).step_by(7) {
            let byte = usize::from(self.take(1)?[0]);
            value |= (byte & 127) << shift;
            if byte < 128 {
                return Ok(value);
            }
        }
        bail!("a varint has more than five bytes")
    }

    /// A string with a length of two bytes; -1 stands for none.
    fn string(&mut self) -> Result<&'a [u8]> {
        let length = self.int16()?;
        self.take(usize::try_from(length).unwrap_or(0))
    }

    /// A string whose length plus one is a varint; 0 stands for none.
    fn compact_string(&mut self) -> Result<&'a [u8]> {
        let length = self.varint()?;
        self.take(length.saturating_sub(1))
    }

    fn no_tags(&mut self) -> Result<()> {
        match self.varint()? {
            0 => Ok(()),
            count => bail!("{count} tagged fields, which librdkafka does not send here"),
        }
    }
}

/// `api_key` of requests for the coordinator of a group.
pub(crate) const FIND_COORDINATOR: i16 = 10;

/// What kind of request this is.
pub(crate) fn api_key(request: &[u8]) -> Result<i16> {
    Cursor(request).int16()
}

/// `client.id` of the client that sends this request.
pub(crate) fn client_id(request: &[u8]) -> Result<String> {
    let mut cursor = Cursor(request);
    cursor.take(8)?;
    Ok(String::from_utf8(cursor.string()?.to_vec())?)
}

/// The partition that a request produces to; none for other requests.
///
/// # Errors
/// When it is a produce request that this code cannot read: a fault would silently not happen.
pub(crate) fn produce(request: &[u8]) -> Result<Option<Produce>> {
    let mut cursor = Cursor(request);
    let (key, version, correlation) = (cursor.int16()?, cursor.int16()?, cursor.int32()?);
    if key != PRODUCE {
        return Ok(None);
    }
    if !(3..FIRST_WITH_TOPIC_IDS).contains(&version) {
        bail!("version {version} of a produce request");
    }
    cursor.string()?;
    let flexible = version >= FIRST_FLEXIBLE;
    if flexible {
        cursor.no_tags()?;
        cursor.compact_string()?;
    } else {
        cursor.string()?;
    }
    // Acknowledgements and time limit.
    cursor.take(2 + 4)?;
    // A compact array's length is one more than its count.
    let count = |cursor: &mut Cursor<'_>| -> Result<usize> {
        if flexible { cursor.varint() } else { Ok(usize::try_from(cursor.int32()?)? + 1) }
    };
    let topics = count(&mut cursor)?;
    let topic = if flexible { cursor.compact_string()? } else { cursor.string()? };
    let partitions = count(&mut cursor)?;
    if (topics, partitions) != (2, 2) {
        bail!("a produce request to more than one partition");
    }
    let topic = String::from_utf8(topic.to_vec())?;
    Ok(Some(Produce { version, correlation, topic, partition: cursor.int32()? }))
}

impl Produce {
    /// The frame, its length included, that refuses this request with an error code of Kafka's.
    pub(crate) fn refusal(&self, error: i16) -> Vec<u8> {
        let flexible = self.version >= FIRST_FLEXIBLE;
        let mut body = self.correlation.to_be_bytes().to_vec();
        if flexible {
            // No tagged fields in the header; then one topic.
            body.extend([0, 2]);
            put_varint(&mut body, self.topic.len() + 1);
            body.extend(self.topic.as_bytes());
            body.push(2);
        } else {
            body.extend(1_i32.to_be_bytes());
            let length = i16::try_from(self.topic.len()).unwrap_or(i16::MAX);
            body.extend(length.to_be_bytes());
            body.extend(self.topic.as_bytes());
            body.extend(1_i32.to_be_bytes());
        }
        body.extend(self.partition.to_be_bytes());
        body.extend(error.to_be_bytes());
        // Base offset and time of the append: none.
        body.extend([0xff; 16]);
        if self.version >= 5 {
            // The log's first offset: unknown.
            body.extend([0xff; 8]);
        }
        if flexible {
            // No errors of single records, no message, no tagged fields of the partition and the topic.
            body.extend([1, 0, 0, 0]);
        } else if self.version >= 8 {
            body.extend(0_i32.to_be_bytes());
            body.extend((-1_i16).to_be_bytes());
        }
        // No throttling.
        body.extend(0_i32.to_be_bytes());
        if flexible {
            body.push(0);
        }
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
        [&length.to_be_bytes()[..], &body].concat()
    }
}

fn put_varint(bytes: &mut Vec<u8>, mut value: usize) {
    while value >= 128 {
        bytes.push(u8::try_from(value % 128).unwrap_or(0) | 128);
        value /= 128;
    }
    bytes.push(u8::try_from(value).unwrap_or(0));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(key: i16, version: i16) -> Vec<u8> {
        let mut bytes = [key.to_be_bytes(), version.to_be_bytes()].concat();
        bytes.extend(77_i32.to_be_bytes());
        bytes.extend([0, 5]);
        bytes.extend(b"relay");
        bytes
    }

    fn flexible(topic: &str, partitions: u8) -> Vec<u8> {
        let mut bytes = header(0, 10);
        // Header tags, no transactional id, acks -1, 5 s, one topic.
        bytes.extend([0, 0, 0xff, 0xff, 0, 0, 19, 136, 2]);
        put_varint(&mut bytes, topic.len() + 1);
        bytes.extend(topic.as_bytes());
        bytes.push(partitions + 1);
        bytes.extend(3_i32.to_be_bytes());
        bytes.extend([3, 1, 2]);
        bytes
    }

    #[test]
    fn a_request_tells_its_client_topic_and_partition() -> Result<()> {
        let long = "t".repeat(200);
        let request = flexible(&long, 1);
        assert_eq!(client_id(&request)?, "relay");
        let expected = Produce { version: 10, correlation: 77, topic: long, partition: 3 };
        assert_eq!(produce(&request)?, Some(expected));

        let mut request = header(0, 7);
        request.extend([0xff, 0xff, 0xff, 0xff, 0, 0, 19, 136, 0, 0, 0, 1, 0, 1, b't', 0, 0, 0, 1, 0, 0, 0, 3]);
        let expected = Produce { version: 7, correlation: 77, topic: "t".to_owned(), partition: 3 };
        assert_eq!(produce(&request)?, Some(expected));
        assert_eq!(produce(&header(3, 12))?, None);
        Ok(())
    }

    #[test]
    fn a_produce_request_that_cannot_be_read_is_an_error_and_never_passed_over() {
        assert!(produce(&header(0, 13)).is_err());
        assert!(produce(&flexible("t", 2)).is_err());
        assert!(produce(&flexible("t", 1)[..20]).is_err());
    }

    #[test]
    fn a_refusal_has_the_form_of_its_requests_version() -> Result<()> {
        let answer = |version| Produce { version, correlation: 77, topic: "t".to_owned(), partition: 3 }.refusal(6);
        let nothing = [0xff; 24];
        let partition = [0, 0, 0, 3, 0, 6];
        let flexible =
            [&[0, 0, 0, 77, 0, 2, 2, b't', 2], &partition[..], &nothing, &[1, 0, 0, 0, 0, 0, 0, 0, 0]].concat();
        assert_eq!(answer(10), [&u32::try_from(flexible.len())?.to_be_bytes()[..], &flexible].concat());
        let old = [&[0, 0, 0, 77, 0, 0, 0, 1, 0, 1, b't', 0, 0, 0, 1], &partition[..], &nothing, &[0; 4]].concat();
        assert_eq!(answer(7), [&u32::try_from(old.len())?.to_be_bytes()[..], &old].concat());
        assert_eq!(answer(8).len(), answer(7).len() + 6);
        assert_eq!(answer(4).len(), answer(7).len() - 8);
        Ok(())
    }
}
