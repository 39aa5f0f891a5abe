//! The data plane's frame: two little-endian lengths, a protobuf header, a raw payload.
//!
//! ```text
//! u32 header length | u32 payload length | header | payload
//! ```
//!
//! The lengths are checked before anything is allocated, so a stranger cannot make a node reserve memory.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::limits::{MAX_HEADER, MAX_PAYLOAD};
use crate::{ErrorCode, Result};

/// Bytes before the header.
pub const PREFIX: usize = 8;

/// The two lengths at the start of a frame, checked against the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lengths {
    /// Bytes of the protobuf header.
    pub header: usize,
    /// Bytes of the payload.
    pub payload: usize,
}

impl Lengths {
    /// Reads and checks a frame's prefix.
    pub fn parse(prefix: [u8; PREFIX]) -> Result<Lengths> {
        let [a, b, c, d, e, f, g, h] = prefix;
        let header = u32::from_le_bytes([a, b, c, d]) as usize;
        let payload = u32::from_le_bytes([e, f, g, h]) as usize;
        if header > MAX_HEADER || payload > MAX_PAYLOAD {
            let detail = format!("frame of {header} header and {payload} payload bytes");
            return Err(ErrorCode::TooLarge.because(detail));
        }
        Ok(Lengths { header, payload })
    }
}

/// The prefix and header of a frame whose payload of `payload` bytes is written right after it.
pub fn encode_head(header: &impl Message, payload: usize) -> Result<Bytes> {
    let length = header.encoded_len();
    if length > MAX_HEADER || payload > MAX_PAYLOAD {
        return Err(
            ErrorCode::TooLarge.because(format!("frame of {length} header and {payload} payload bytes"))
        );
    }
    let mut out = BytesMut::with_capacity(PREFIX + length);
    out.put_u32_le(length as u32);
    out.put_u32_le(payload as u32);
    header.encode(&mut out).expect("the buffer has room for the encoded length");
    Ok(out.freeze())
}

/// Decodes a header that was read whole.
pub fn decode_header<M: Message + Default>(header: &[u8]) -> Result<M> {
    M::decode(header).map_err(|error| ErrorCode::Malformed.because(format!("frame header: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Ack, Response, response};

    fn lengths(header: u32, payload: u32) -> Result<Lengths> {
        let mut prefix = [0; PREFIX];
        prefix[..4].copy_from_slice(&header.to_le_bytes());
        prefix[4..].copy_from_slice(&payload.to_le_bytes());
        Lengths::parse(prefix)
    }

    #[test]
    fn a_head_reads_back() {
        let sent = Response { kind: Some(response::Kind::Ack(Ack { length: 7, synced: 3 })) };
        let head = encode_head(&sent, 99).unwrap();
        let read = Lengths::parse(head[..PREFIX].try_into().unwrap()).unwrap();
        assert_eq!(read, Lengths { header: head.len() - PREFIX, payload: 99 });
        assert_eq!(decode_header::<Response>(&head[PREFIX..]).unwrap(), sent);
    }

    #[test]
    fn huge_lengths_are_refused_before_allocation() {
        assert_eq!(lengths(u32::MAX, 0).unwrap_err().code, ErrorCode::TooLarge);
        assert_eq!(lengths(0, MAX_PAYLOAD as u32 + 1).unwrap_err().code, ErrorCode::TooLarge);
        assert!(lengths(MAX_HEADER as u32, MAX_PAYLOAD as u32).is_ok());
    }

    #[test]
    fn garbage_is_malformed() {
        assert_eq!(decode_header::<Response>(&[0xff; 9]).unwrap_err().code, ErrorCode::Malformed);
    }
}
