//! Which account is asked first. Pure: the Scheduler hands in views, and walks down what comes out.

use super::AccountId;

/// What ranking needs to know of one candidate whose verdict allows it.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Who.
    pub id: &'a AccountId,
    /// Lower goes first.
    pub priority: i64,
    /// Share among equals.
    pub weight: u32,
    /// Slots taken and in all.
    pub in_use: u32,
    /// Slots in all, at least 1.
    pub limit: u32,
    /// Times it was picked, to rotate among equals: counted when picked, not when answered, so that calls
    /// that arrive together spread too.
    pub picks: u64,
    /// Only if nobody else can.
    pub last_resort: bool,
}

/// The better of two candidates is the lesser by this key.
type Rank = (bool, i64, u64, u64);

fn rank(c: &Candidate) -> Rank {
    let weight = u64::from(c.weight.max(1));
    let share = u64::from(c.limit.max(1)) * weight;
    (c.last_resort, c.priority, u64::from(c.in_use) * 1_000_000_000 / share, c.picks.saturating_mul(1_000) / weight)
}

/// The candidate to ask first, or `None` if there is none.
pub fn best<'a>(candidates: impl Iterator<Item = Candidate<'a>>) -> Option<Candidate<'a>> {
    candidates.min_by_key(rank)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(id: &AccountId) -> Candidate<'_> {
        Candidate { id, priority: 50, weight: 100, in_use: 0, limit: 5, picks: 0, last_resort: false }
    }

    #[test]
    fn priority_then_load_then_rotation_and_a_last_resort_last() {
        let ids: Vec<_> = ["a", "b", "c"].iter().map(|s| AccountId::parse(s).unwrap()).collect();
        let base: Vec<_> = ids.iter().map(candidate).collect();
        let chosen = |edit: &dyn Fn(&mut [Candidate])| {
            let mut list = base.clone();
            edit(&mut list);
            best(list.into_iter()).unwrap().id.as_str().to_owned()
        };
        assert_eq!(chosen(&|l| l[1].priority = 1), "b");
        assert_eq!(chosen(&|l| (l[0].in_use, l[1].in_use) = (2, 1)), "c");
        assert_eq!(chosen(&|l| (l[0].picks, l[1].picks) = (2, 1)), "c");
        assert_eq!(chosen(&|l| (l[0].in_use, l[1].in_use, l[2].in_use, l[1].limit) = (1, 1, 1, 10)), "b");
        assert_eq!(chosen(&|l| (l[0].last_resort, l[0].priority) = (true, 1)), "b");
        assert!(best([].into_iter()).is_none());
    }

    #[test]
    fn equal_accounts_share_evenly() {
        let ids: Vec<_> = (0..7).map(|i| AccountId::parse(&format!("a{i}")).unwrap()).collect();
        let mut picks = vec![0_u64; ids.len()];
        for _ in 0..700 {
            let list = ids.iter().zip(&picks).map(|(id, n)| Candidate { picks: *n, ..candidate(id) });
            let chosen = best(list).unwrap().id.clone();
            picks[ids.iter().position(|i| *i == chosen).unwrap()] += 1;
        }
        assert!(picks.iter().all(|n| *n == 100), "{picks:?}");
    }
}
