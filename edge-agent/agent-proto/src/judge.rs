//! Whether a command is obeyed (`edge-agent/PROTOCOL.md` §2.3), by agents and devices alike.

use alloc::boxed::Box;

use event_schema::{AgentId, Command, CommandBody, CommandId, RefusalReason, Signed, Timestamp};

use crate::limits::CLOCK_GRACE_MS;

/// What becomes of a command.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Store, answer, do.
    Obey(Box<Command>),
    /// Authentic but not to be obeyed: answer why. `in_turn`: it takes its place in the sequence.
    Refuse {
        /// Which.
        command: CommandId,
        /// Its sequence.
        sequence: u64,
        /// Why.
        reason: RefusalReason,
        /// Whether the cursor moves to it.
        in_turn: bool,
    },
    /// Not signed by a key we trust, or not readable as a command at all: no answer.
    Forged,
    /// Commands are missing before it: ask again.
    Gap,
}

/// Judges a command that arrived after the one with sequence `last`. `not_allowed` is asked last, about
/// the body of an otherwise good one.
pub fn judge(
    signed: &Signed,
    keys: &[[u8; 32]],
    me: AgentId,
    last: u64,
    now: Timestamp,
    not_allowed: impl FnOnce(&CommandBody) -> bool,
) -> Verdict {
    let mut opened = Command::open(signed, keys, me, last, now);
    if opened == Err(RefusalReason::TooEarly) {
        let grace = Timestamp(now.0.saturating_add(CLOCK_GRACE_MS));
        opened = Command::open(signed, keys, me, last, grace);
    }
    if opened == Err(RefusalReason::BadSignature) {
        return Verdict::Forged;
    }
    let Ok((command, audience, sequence)) = Command::address(&signed.bytes) else { return Verdict::Forged };
    let refuse = |reason, in_turn| Verdict::Refuse { command, sequence, reason, in_turn };
    if audience != me {
        return refuse(RefusalReason::WrongAudience, false);
    }
    if sequence <= last {
        return refuse(RefusalReason::Replayed, false);
    }
    if sequence - last > 1 {
        return Verdict::Gap;
    }
    match opened {
        Ok(command) if not_allowed(&command.body) => refuse(RefusalReason::NotAllowed, true),
        Ok(command) => Verdict::Obey(Box::new(command)),
        Err(reason) => refuse(reason, true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::SigningKey;
    use event_schema::{Domain, FinishRun, RunId};

    const ME: AgentId = AgentId([1; 16]);
    const NOW: Timestamp = Timestamp(1_000_000);

    fn command(sequence: u64) -> Command {
        Command {
            id: CommandId([2; 16]),
            audience: ME,
            sequence,
            issued: NOW,
            not_before: NOW,
            expires: Timestamp(NOW.0 + 1000),
            body: FinishRun { run: RunId([3; 16]) }.into(),
        }
    }

    #[test]
    fn every_finding_of_the_table() {
        let key = SigningKey::from_bytes(&[4; 32]);
        let keys = [key.verifying_key().to_bytes()];
        let at = |signed: &Signed, now| judge(signed, &keys, ME, 7, now, |_| false);
        let check = |command: Command| at(&command.sign(&key), NOW);
        let refused = |sequence, reason, in_turn| Verdict::Refuse {
            command: CommandId([2; 16]),
            sequence,
            reason,
            in_turn,
        };
        assert_eq!(check(command(8)), Verdict::Obey(Box::new(command(8))));
        assert_eq!(check(command(9)), Verdict::Gap);
        assert_eq!(check(command(7)), refused(7, RefusalReason::Replayed, false));
        assert_eq!(check(command(0)), refused(0, RefusalReason::Replayed, false));
        let foreign = Command { audience: AgentId([9; 16]), ..command(8) };
        assert_eq!(check(foreign), refused(8, RefusalReason::WrongAudience, false));
        assert_eq!(
            check(Command { expires: Timestamp(1), ..command(8) }),
            refused(8, RefusalReason::Expired, true)
        );
        let early =
            Command { not_before: Timestamp(NOW.0 + 60_000), expires: Timestamp::NEVER, ..command(8) };
        assert!(matches!(check(early.clone()), Verdict::Obey(_)), "within the grace");
        let early = Command { not_before: Timestamp(NOW.0 + 60_001), ..early };
        assert_eq!(check(early), refused(8, RefusalReason::TooEarly, true));
        let stranger = SigningKey::from_bytes(&[5; 32]);
        assert_eq!(at(&command(8).sign(&stranger), NOW), Verdict::Forged);
        let mut cut = command(8).sign(&key);
        cut.bytes.pop();
        assert_eq!(at(&cut, NOW), Verdict::Forged);
        assert_eq!(at(&Signed::sign(Domain::Command, alloc::vec![9, 9], &key), NOW), Verdict::Forged);
        // A body that a newer service wrote: the last byte of the envelope is the body's payload.
        let newer = newer_body(command(8), &key);
        assert_eq!(at(&newer, NOW), refused(8, RefusalReason::NotUnderstood, true));
        let owner = judge(&command(8).sign(&key), &keys, ME, 7, NOW, |_| true);
        assert_eq!(owner, refused(8, RefusalReason::NotAllowed, true));
    }

    /// The command with a kind of body that does not exist yet.
    fn newer_body(command: Command, key: &SigningKey) -> Signed {
        let mut bytes = command.sign(key).bytes;
        // The body comes last: kind 2, version 1, length 16, run id.
        let kind = bytes.len() - 16 - 3;
        assert_eq!(bytes[kind..kind + 3], [2, 1, 16]);
        bytes[kind] = 99;
        Signed::sign(Domain::Command, bytes, key)
    }
}
