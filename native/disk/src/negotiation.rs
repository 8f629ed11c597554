//! The part of both directions before the first request: greeting, options, their answers.

use crate::GateError;
use crate::protocol::{
    CLIENT_FLAGS_KNOWN, GREETING_BYTES, GREETING_FIXED_NEWSTYLE, GREETING_MAGIC, OPTION_BYTES,
    OPTION_DATA_BYTES_MAX, OPTION_EXPORT_NAME, OPTION_GO, OPTION_HIDDEN, OPTION_MAGIC,
    OPTION_NUMBER_MAX, OPTION_REPLY_BYTES, OPTION_REPLY_MAGIC, OPTION_STRUCTURED_REPLY,
    OPTIONS_FOLLOWED, REPLY_ACK, REPLY_ERROR_BIT, be16, be32, be64,
};

/// Checks the server's first bytes.
pub(crate) fn check_greeting(greeting: &[u8; GREETING_BYTES]) -> Result<(), GateError> {
    let fits = be64(greeting, 0) == GREETING_MAGIC
        && be64(greeting, 8) == OPTION_MAGIC
        && be16(greeting, 16) & GREETING_FIXED_NEWSTYLE != 0;
    if fits { Ok(()) } else { Err(GateError::Protocol("no fixed newstyle server")) }
}

/// Checks the client's answer to the greeting.
pub(crate) fn check_client_flags(flags: [u8; 4]) -> Result<(), GateError> {
    if u32::from_be_bytes(flags) & !CLIENT_FLAGS_KNOWN == 0 {
        Ok(())
    } else {
        Err(GateError::Protocol("unknown client flags"))
    }
}

/// Checks the header of an option, hides it if the gate could not follow what comes of it, and
/// answers the length of its data.
pub(crate) fn follow_option(header: &mut [u8; OPTION_BYTES]) -> Result<u32, GateError> {
    if be64(header, 0) != OPTION_MAGIC {
        return Err(GateError::Protocol("neither an option nor a request"));
    }
    let (option, data_bytes) = (be32(header, 8), be32(header, 12));
    if data_bytes > OPTION_DATA_BYTES_MAX {
        return Err(GateError::Protocol("an option with too much data"));
    }
    // Hidden already by a gate nearer to the client: a tap and a gate stand in one way.
    if option & !OPTION_NUMBER_MAX == OPTION_HIDDEN {
        return Ok(data_bytes);
    }
    if option == OPTION_EXPORT_NAME || option > OPTION_NUMBER_MAX {
        return Err(GateError::Protocol("an option that can't be followed"));
    }
    if !OPTIONS_FOLLOWED.contains(&option) {
        header[8..12].copy_from_slice(&(OPTION_HIDDEN | option).to_be_bytes());
    }
    Ok(data_bytes)
}

/// What an answer to an option means for the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Agreed {
    Nothing,
    StructuredReplies,
    Transmission,
}

/// Checks the header of an answer, gives a hidden option its number back, and answers the length
/// of its data.
pub(crate) fn follow_option_reply(
    header: &mut [u8; OPTION_REPLY_BYTES],
) -> Result<(u32, Agreed), GateError> {
    if be64(header, 0) != OPTION_REPLY_MAGIC {
        return Err(GateError::Protocol("no answer to an option"));
    }
    let (option, kind, data_bytes) = (be32(header, 8), be32(header, 12), be32(header, 16));
    if data_bytes > OPTION_DATA_BYTES_MAX {
        return Err(GateError::Protocol("an answer with too much data"));
    }
    let agreed = match (option, kind) {
        (OPTION_STRUCTURED_REPLY, REPLY_ACK) => Agreed::StructuredReplies,
        (OPTION_GO, REPLY_ACK) => Agreed::Transmission,
        (hidden, _) if hidden & !OPTION_NUMBER_MAX == OPTION_HIDDEN => {
            if kind & REPLY_ERROR_BIT == 0 {
                return Err(GateError::Protocol("a server that takes every option"));
            }
            header[8..12].copy_from_slice(&(hidden & OPTION_NUMBER_MAX).to_be_bytes());
            Agreed::Nothing
        }
        _ => Agreed::Nothing,
    };
    Ok((data_bytes, agreed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(number: u32, data_bytes: u32) -> [u8; OPTION_BYTES] {
        let mut header = [0; OPTION_BYTES];
        header[..8].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        header[8..12].copy_from_slice(&number.to_be_bytes());
        header[12..].copy_from_slice(&data_bytes.to_be_bytes());
        header
    }

    #[test]
    fn what_can_not_be_followed_is_hidden_and_comes_back() {
        for number in [0, 5, 11, 12, 400] {
            let mut header = option(number, 7);
            assert_eq!(follow_option(&mut header).expect("forwarded"), 7);
            assert_eq!(be32(&header, 8), OPTION_HIDDEN | number);
            let mut reply = [0; OPTION_REPLY_BYTES];
            reply[..8].copy_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
            reply[8..12].copy_from_slice(&header[8..12]);
            reply[12..16].copy_from_slice(&(REPLY_ERROR_BIT | 1).to_be_bytes());
            let (_, agreed) = follow_option_reply(&mut reply).expect("forwarded");
            assert_eq!((be32(&reply, 8), agreed), (number, Agreed::Nothing));
            reply[8..12].copy_from_slice(&header[8..12]);
            reply[12..16].copy_from_slice(&REPLY_ACK.to_be_bytes());
            assert!(follow_option_reply(&mut reply).is_err(), "a server that agreed to {number}");
        }
        let mut hidden = option(11, 0);
        follow_option(&mut hidden).expect("forwarded by the tap");
        let once = hidden;
        follow_option(&mut hidden).expect("forwarded by the gate behind it");
        assert_eq!(hidden, once);
        for number in OPTIONS_FOLLOWED {
            let mut header = option(number, 0);
            follow_option(&mut header).expect("forwarded");
            assert_eq!(header, option(number, 0));
        }
        for (number, data_bytes) in [(1, 0), (0x0100_0000, 0), (7, OPTION_DATA_BYTES_MAX + 1)] {
            assert!(follow_option(&mut option(number, data_bytes)).is_err());
        }
    }
}
