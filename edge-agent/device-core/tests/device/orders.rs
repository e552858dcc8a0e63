//! Which commands a device obeys: rollback, replay, freeze, mix-and-match, foreign audiences, no clock, a full outbox.

use device_core::limits::{REPORTS_MAX, STATES_MAX};
use device_core::{Error, Taken};
use ed25519_dalek::SigningKey;
use event_schema::{
    AgentId, Command, FinishRun, RefusalReason, Report, ReportBody, Role, RunAgentState, RunId, Signed,
    StopRun, Timestamp, TransferStats,
};

use crate::world::{NOW, RUN, bundle, command, command_key, device, device_key, join, open, root};

fn finish(sequence: u64) -> Command {
    command(sequence, FinishRun { run: RunId([9; 16]) })
}

fn sign(command: &Command) -> Signed {
    command.sign(&command_key())
}

#[test]
fn each_once_in_order_and_in_time() {
    let (flash, mut device) = device::<8>();
    let foreign = Command { audience: AgentId([5; 16]), ..finish(1) };
    let stranger = SigningKey::from_bytes(&[77; 32]);
    for (signed, expected) in [
        (finish(1).sign(&stranger), Taken::Forged),
        (sign(&finish(2)), Taken::Gap),
        (sign(&foreign), Taken::Passed(RefusalReason::WrongAudience)),
        (sign(&finish(1)), Taken::Obey(Box::new(finish(1)))),
        (sign(&finish(1)), Taken::Passed(RefusalReason::Replayed)),
        (
            sign(&Command { expires: Timestamp(NOW.0 - 1), ..finish(2) }),
            Taken::Refused(RefusalReason::Expired),
        ),
        (
            sign(&Command { not_before: Timestamp(NOW.0 + 3_600_000), ..finish(3) }),
            Taken::Refused(RefusalReason::TooEarly),
        ),
        (sign(&finish(2)), Taken::Passed(RefusalReason::Replayed)),
    ] {
        assert_eq!(device.take(&signed, Some(NOW)), Ok(expected));
        // And after a start it is the same.
        device = open(&flash).expect("power is there");
    }
    // Only what took its turn is answered: replays would fill the outbox.
    assert_eq!((device.cursor(), device.waiting()), (3, 1..=3));
}

#[test]
fn what_devices_do_not_do_is_refused() {
    let (_flash, mut device) = device::<8>();
    let mut as_source = join(RUN);
    as_source.role = Role::Source;
    let signed = sign(&command(1, as_source));
    assert_eq!(device.take(&signed, Some(NOW)), Ok(Taken::Refused(RefusalReason::NotUnderstood)));
    let mut large = join(RUN);
    large.sealed_secret = vec![0; 4000];
    let signed = sign(&command(2, large));
    assert_eq!(device.take(&signed, Some(NOW)), Ok(Taken::Refused(RefusalReason::NotAllowed)));
    assert_eq!(device.order(), Ok(None));
}

#[test]
fn without_a_clock_nothing_is_obeyed_and_what_expired_is_refused() {
    let (flash, mut device) = device::<8>();
    let later = Timestamp(NOW.0 + 7_200_000);
    device.note_time(later).expect("power is there");
    let mut device = open(&flash).expect("power is there");
    assert_eq!(device.take(&sign(&finish(1)), None), Ok(Taken::NeedsTime));
    let early = Command { not_before: Timestamp(later.0 + 3_600_000), ..finish(1) };
    assert_eq!(device.take(&sign(&early), None), Ok(Taken::NeedsTime));
    // An attacker who turns the clock back brings nothing back to life.
    let old = Command { expires: Timestamp(later.0 - 1), ..finish(1) };
    assert_eq!(device.take(&sign(&old), Some(NOW)), Ok(Taken::Refused(RefusalReason::Expired)));
    let old = Command { expires: Timestamp(later.0 - 1), ..finish(2) };
    assert_eq!(device.take(&sign(&old), None), Ok(Taken::Refused(RefusalReason::Expired)));
    assert_eq!(device.take(&sign(&finish(3)), Some(later)), Ok(Taken::Obey(Box::new(finish(3)))));
}

#[test]
fn an_order_gives_way_to_the_next_and_its_end_is_told() {
    let (flash, mut device) = device::<8>();
    let other = RunId([0x22; 16]);
    assert!(matches!(device.take(&sign(&command(1, join(RUN))), Some(NOW)), Ok(Taken::Obey(_))));
    assert!(matches!(device.take(&sign(&command(2, join(other))), Some(NOW)), Ok(Taken::Obey(_))));
    let mut device = open(&flash).expect("power is there");
    assert_eq!(device.order().unwrap().unwrap().body, command(2, join(other)).body);
    assert_eq!(device.report_end(RunAgentState::Done, TransferStats::default(), Some(NOW)), Ok(true));
    assert_eq!(device.report_end(RunAgentState::Done, TransferStats::default(), Some(NOW)), Ok(false));
    let stop = command(3, StopRun { run: other });
    assert!(matches!(device.take(&sign(&stop), Some(NOW)), Ok(Taken::Obey(_))));
    assert_eq!(device.order(), Ok(None));
    let key = device_key().verifying_key().to_bytes();
    let told: Vec<_> = device
        .waiting()
        .map(|number| Report::open(&device.report(number).unwrap().unwrap(), &key).unwrap().body)
        .filter_map(|body| match body {
            ReportBody::RunCompleted(end) => Some((end.run, end.state)),
            _ => None,
        })
        .collect();
    assert_eq!(told, [(RUN, RunAgentState::Stopped), (other, RunAgentState::Done)]);
}

#[test]
fn a_full_outbox_drops_states_and_takes_no_command_it_cannot_answer() {
    let (flash, mut device) = device::<8>();
    assert!(matches!(device.take(&sign(&command(1, join(RUN))), Some(NOW)), Ok(Taken::Obey(_))));
    let told = (0..100).filter(|_| device.report_state(RunAgentState::Stalled, Some(NOW)).unwrap()).count();
    assert_eq!((told, device.dropped()), (STATES_MAX - 1, 100 - (STATES_MAX as u32 - 1)));
    let mut sequence = 2;
    let full = loop {
        match device.take(&sign(&finish(sequence)), Some(NOW)) {
            Ok(Taken::Obey(_)) => sequence += 1,
            other => break other,
        }
    };
    assert_eq!((full, sequence as usize), (Err(Error::OutboxFull), REPORTS_MAX - STATES_MAX + 2));
    let mut device = open(&flash).expect("power is there");
    assert_eq!((device.cursor(), device.waiting()), (sequence - 1, 1..=REPORTS_MAX as u64));
    assert!(device.order().unwrap().is_some());
    assert_eq!(device.stored(10), Ok(true));
    assert_eq!(device.stored(10), Ok(false));
    assert!(matches!(device.take(&sign(&finish(sequence)), Some(NOW)), Ok(Taken::Obey(_))));
    assert_eq!(device.report(10), Ok(None));
    assert!(device.report(11).unwrap().is_some());
    assert_eq!(device.stored(u64::MAX), Ok(true));
    assert!(device.waiting().is_empty());
}

#[test]
fn keys_change_under_the_root_only_and_never_back() {
    let (flash, mut device) = device::<8>();
    let new = SigningKey::from_bytes(&[66; 32]);
    let keys = vec![new.verifying_key().to_bytes()];
    assert_eq!(device.trust(&bundle(2, keys.clone()).sign(&SigningKey::from_bytes(&[5; 32]))), Ok(false));
    assert_eq!(device.trust(&bundle(1, keys.clone()).sign(&root())), Ok(false));
    assert_eq!(device.trust(&bundle(2, vec![[0; 32]; 5]).sign(&root())), Err(Error::TooLarge));
    assert_eq!(device.trust(&bundle(2, keys).sign(&root())), Ok(true));
    let mut device = open(&flash).expect("power is there");
    assert_eq!(device.trust_version(), 2);
    assert_eq!(device.take(&sign(&finish(1)), Some(NOW)), Ok(Taken::Forged));
    assert!(matches!(device.take(&finish(1).sign(&new), Some(NOW)), Ok(Taken::Obey(_))));
}
