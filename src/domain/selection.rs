//! Which account is asked first. Pure: the dispatcher hands in a few candidates, and asks the best.
//!
//! An account's *share* among its equals is its weight, less for what is known against it: failures lately, a slow
//! first byte, a window nearly used up. Of two candidates the one that is less loaded for its share is better; of
//! two that are equally loaded, the one whose turn it is. A turn is counted when an account is picked, not when it
//! answers, so that calls that arrive together spread too.

use super::breaker::mix;
use std::time::Duration;

/// What ranking needs to know of one candidate whose verdict allows it.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// Only if nobody else can.
    pub last_resort: bool,
    /// Lower goes first.
    pub priority: i64,
    /// Slots taken.
    pub in_use: u32,
    /// Slots in all, at least 1.
    pub limit: u32,
    /// Its share, at least 1.
    pub share: u64,
    /// Its turn: see [`turn`].
    pub turn: u64,
}

/// The better of two candidates is the lesser by this.
pub fn rank(c: &Candidate) -> impl Ord + Copy + use<> {
    let load = u64::from(c.in_use) * 1_000_000_000_000 / (u64::from(c.limit.max(1)) * c.share.max(1));
    (c.last_resort, c.priority, load, c.turn)
}

/// What is known of an account beside its weight.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quality {
    /// Failures in a row.
    pub strikes: u32,
    /// How full its fullest window is, thousandths.
    pub used: u16,
    /// Its time to the first byte, and the usual one of the pool.
    pub first_byte: Option<(Duration, Duration)>,
}

/// The share of an account of this weight (1 to 1,000): at most a thousand times the weight, at least 1.
pub fn share(weight: u32, quality: Quality) -> u64 {
    // In coarse steps: noise must not decide between equals.
    let failing = quality.strikes.min(3);
    let emptying = match quality.used {
        ..=800 => 0,
        801..=900 => 1,
        901..=950 => 2,
        _ => 3,
    };
    let slow = match quality.first_byte {
        Some((own, usual)) if own > usual * 4 => 2,
        Some((own, usual)) if own > usual * 2 => 1,
        _ => 0,
    };
    ((u64::from(weight.max(1)) * 1_000) >> (failing + emptying + slow)).max(1)
}

/// How far one pick moves an account's turn on: the smaller its share, the farther.
pub fn turn(share: u64) -> u64 {
    1_000_000_000 / share.max(1)
}

/// How much `account` wants `session`, by weighted rendezvous hashing (Thaler and Ravishankar 1998; the weights as
/// in Schindelhauer and Schomaker 2005): the session's first home is where this is greatest. It hangs on nothing but
/// the two names and the weight, so that restarts and other relays agree.
pub fn affinity(session: u64, account: u64, weight: u32) -> f64 {
    // 53 bits, the middle of its step: neither 0 nor 1, whose logarithms are of no use.
    #[allow(clippy::cast_precision_loss)] // 53 bits fit
    let uniform = ((mix(session ^ mix(account)) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    f64::from(weight.max(1)) / -uniform.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Candidate = Candidate { last_resort: false, priority: 50, in_use: 0, limit: 5, share: 100_000, turn: 0 };

    #[test]
    fn priority_then_load_then_turn_and_a_last_resort_last() {
        let better = |a: Candidate, b: Candidate| rank(&a) < rank(&b);
        assert!(better(Candidate { priority: 1, in_use: 4, ..ONE }, ONE));
        assert!(better(Candidate { in_use: 1, ..ONE }, Candidate { in_use: 2, ..ONE }));
        assert!(better(Candidate { in_use: 1, limit: 10, ..ONE }, Candidate { in_use: 1, ..ONE }));
        assert!(better(Candidate { in_use: 1, share: 200_000, ..ONE }, Candidate { in_use: 1, ..ONE }));
        assert!(better(Candidate { turn: 1, ..ONE }, Candidate { turn: 2, ..ONE }));
        assert!(better(Candidate { in_use: 4, ..ONE }, Candidate { last_resort: true, priority: 1, ..ONE }));
    }

    #[test]
    fn what_is_known_against_an_account_lessens_its_share() {
        let with = |edit: fn(&mut Quality)| {
            let mut quality = Quality::default();
            edit(&mut quality);
            share(100, quality)
        };
        let ms = Duration::from_millis;
        assert_eq!(with(|_| ()), 100_000);
        assert_eq!(with(|q| q.strikes = 1), 50_000);
        assert_eq!(with(|q| q.used = 930), 25_000);
        assert_eq!(with(|q| q.first_byte = Some((Duration::from_millis(190), Duration::from_millis(100)))), 100_000);
        assert_eq!(with(|q| q.first_byte = Some((Duration::from_millis(900), Duration::from_millis(100)))), 25_000);
        let worst = Quality { strikes: 99, used: 1_000, first_byte: Some((ms(9_000), ms(1))) };
        assert_eq!(share(1, worst), 3);
    }

    #[test]
    fn turns_follow_shares() {
        let shares = [100_000_u64, 100_000, 50_000, 200_000];
        let (mut turns, mut picked) = ([0_u64; 4], [0_u32; 4]);
        for _ in 0..900 {
            let next = (0..4).min_by_key(|i| turns[*i]).unwrap();
            turns[next] += turn(shares[next]);
            picked[next] += 1;
        }
        assert_eq!(picked, [200, 200, 100, 400]);
    }

    #[test]
    fn homes_follow_weights_and_move_only_where_they_must() {
        let home = |session: u64, accounts: &[(u64, u32)]| {
            let want = |a: &(u64, u32)| affinity(mix(session), a.0, a.1);
            accounts.iter().max_by(|a, b| want(a).total_cmp(&want(b))).unwrap().0
        };
        let (all, fewer) = ([(1, 100), (2, 100), (3, 200)], [(1, 100), (2, 100)]);
        let mut count = [0_u32; 4];
        for session in 0..4_000 {
            let at = home(session, &all);
            count[usize::try_from(at).unwrap()] += 1;
            assert!(at == 3 || home(session, &fewer) == at, "a session moved though its home is still there");
        }
        assert!((900..1_100).contains(&count[1]) && (1_900..2_100).contains(&count[3]), "{count:?}");
    }
}
