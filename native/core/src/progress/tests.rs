use super::*;
use crate::convergence::{AIM_MS, decide, is_flat};
use proptest::prelude::*;

/// How often a long round is looked at, as in the driver, seconds.
const LOOK_S: f64 = 0.2;

/// A guest by the distinct bytes that it writes in a time.
#[derive(Clone, Copy, Debug)]
enum Guest {
    Idle,
    /// Random order over a working set.
    Random { bytes_per_second: f64, set: f64 },
    /// A hot part, and new pages all the time.
    HotAndStream { hot: f64, bytes_per_second: f64 },
}

impl Guest {
    fn dirtied(self, seconds: f64, memory: f64) -> f64 {
        match self {
            Self::Idle => 0.0,
            Self::Random { bytes_per_second, set } => {
                set * (1.0 - (-bytes_per_second * seconds / set).exp())
            }
            Self::HotAndStream { hot, bytes_per_second } => {
                hot * (1.0 - (-seconds / 0.05).exp()) + bytes_per_second * seconds
            }
        }
        .min(memory)
    }
}

/// A move as it happens: everything constant but what a real look gets wrong.
#[derive(Clone, Copy, Debug)]
struct Scene {
    memory: f64,
    /// The first part of memory is full of zeros, which cost nothing.
    zero_part: f64,
    rate: f64,
    guest: Guest,
    post_copy: bool,
    budget_ms: f64,
    deadline_ms: f64,
    /// Part by which counts, rates and samples are wrong, up or down.
    noise: f64,
    seed: u64,
}

struct Noise {
    state: u64,
    part: f64,
}

impl Noise {
    fn of(&mut self, value: f64) -> f64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let unit = (self.state >> 40) as f64 / (1_u64 << 24) as f64;
        value * (1.0 + (unit * 2.0 - 1.0) * self.part)
    }
}

/// When which estimate was seen, ms; and what it came to.
#[derive(Debug)]
struct Story {
    looks: Vec<(f64, Outlook)>,
    /// End of memory and its last pass; `None` when the move was given up.
    end: Option<(f64, f64)>,
}

fn fresh(scene: &Scene) -> Situation {
    Situation {
        rounds_sent: 0,
        remaining_bytes: scene.memory,
        previous_remaining_bytes: None,
        flat_rounds: 0,
        send_bytes_per_second: Some(scene.rate),
        dirty_bytes_per_second: 0.0,
        downtime_budget_ms: scene.budget_ms,
        fixed_downtime_ms: 6.0,
        post_copy_allowed: scene.post_copy,
        post_copy_requested: false,
        elapsed_ms: 0.0,
        deadline_ms: scene.deadline_ms,
    }
}

fn play(scene: &Scene) -> Story {
    let mut noise = Noise { state: scene.seed, part: scene.noise };
    let (mut curve, mut now, mut sent_s) = (DirtyCurve::default(), 0.0, 0.0);
    let mut situation = fresh(scene);
    let mut looks = Vec::new();
    let mut percent = Percent::default();
    let mut shown = 0.0;
    let mut zeros = scene.memory * scene.zero_part;
    let mut left = scene.memory - zeros;
    let (mut planned, mut done) = (scene.memory, 0.0);
    loop {
        let round_s = left / scene.rate;
        done += std::mem::take(&mut zeros);
        let mut into = LOOK_S;
        while into < round_s {
            curve.observe(into, noise.of(scene.guest.dirtied(into, scene.memory)));
            let figures = Figures {
                planned_bytes: planned,
                done_bytes: done + scene.rate * into,
                left_bytes: noise.of(left - scene.rate * into),
                send_bytes_per_second: (sent_s + into > 0.0).then(|| noise.of(scene.rate)),
                dirtying_ms: into * 1e3,
                curve: &curve,
                situation: Situation { elapsed_ms: now + into * 1e3, ..situation },
                decided: false,
                paused: false,
                ended: false,
            };
            let told = outlook(&figures);
            let value = percent.update(&figures, &told, now + into * 1e3);
            assert!((shown..=99.0).contains(&value), "{value} % after {shown} %");
            shown = value;
            looks.push((now + into * 1e3, told));
            into += LOOK_S;
        }
        now += round_s * 1e3;
        sent_s += round_s;
        done += left;
        let round_s = round_s.max(0.001);
        left = scene.guest.dirtied(round_s, scene.memory);
        curve.observe(round_s, noise.of(left));
        planned += left;
        situation.rounds_sent += 1;
        situation.elapsed_ms = now;
        situation.remaining_bytes = left;
        let pass_ms = left / scene.rate * 1e3;
        match decide(&situation) {
            Decision::SwitchOver { .. } => {
                return Story { looks, end: Some((now + pass_ms, pass_ms)) };
            }
            Decision::PostCopy { .. } => return Story { looks, end: Some((now + pass_ms, 0.0)) },
            Decision::GiveUp { .. } => return Story { looks, end: None },
            Decision::NextRound { .. } => {}
        }
        situation.flat_rounds = if is_flat(&situation) { situation.flat_rounds + 1 } else { 0 };
        situation.previous_remaining_bytes = Some(left);
    }
}

/// Parts of the looks after a fifth of the move that were silent, or wrong by over a fifth of it.
fn wrong_part(story: &Story) -> f64 {
    let Some((end, _)) = story.end else { return 0.0 };
    let late: Vec<_> = story.looks.iter().filter(|(at, _)| *at >= end * 0.2).collect();
    let wrong = late.iter().filter(|(at, told)| {
        told.eta_ms().is_none_or(|eta| (at + eta - end).abs() > end * 0.2)
    });
    wrong.count() as f64 / (late.len() as f64).max(1.0)
}

const SCENE: Scene = Scene {
    memory: 200e6,
    zero_part: 0.0,
    rate: 10e6,
    guest: Guest::Idle,
    post_copy: false,
    budget_ms: 100.0,
    deadline_ms: 3_600_000.0,
    noise: 0.0,
    seed: 1,
};

fn guests() -> impl Strategy<Value = Guest> {
    prop_oneof![
        Just(Guest::Idle),
        (0.01..0.95_f64, 1e6..100e6_f64).prop_map(|(part, set)| Guest::Random {
            bytes_per_second: part, set,
        }),
        (0.05e6..0.4e6_f64, 0.0..0.5_f64).prop_map(|(hot, part)| Guest::HotAndStream {
            hot, bytes_per_second: part,
        }),
    ]
}

/// Rates of guests are drawn as parts of the link's.
fn scaled(guest: Guest, rate: f64) -> Guest {
    match guest {
        Guest::Random { bytes_per_second, set } => {
            Guest::Random { bytes_per_second: bytes_per_second * rate, set }
        }
        Guest::HotAndStream { hot, bytes_per_second } => {
            Guest::HotAndStream { hot, bytes_per_second: bytes_per_second * rate }
        }
        Guest::Idle => Guest::Idle,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn after_a_fifth_of_the_move_the_eta_is_within_a_fifth(
        memory in 100e6..2e9_f64, zero_part in 0.0..0.7_f64, rate in 8e6..100e6_f64,
        guest in guests(), post_copy in any::<bool>(), seed in any::<u64>(),
    ) {
        let scene = Scene {
            memory, zero_part, rate, guest: scaled(guest, rate), post_copy, noise: 0.04, seed,
            ..SCENE
        };
        let story = play(&scene);
        let wrong = wrong_part(&story);
        let part = wrong * 100.0;
        prop_assert!(wrong <= 0.1, "seed {seed}: {part:.0} % of the looks are wrong: {story:?}");
    }
}

#[test]
fn table_of_moves() {
    let random = |part: f64, set| Guest::Random { bytes_per_second: part * 10e6, set };
    let scenes = [
        ("idle", SCENE),
        ("half of it zero pages", Scene { zero_part: 0.5, ..SCENE }),
        ("0.3 of the link", Scene { guest: random(0.3, 1e9), ..SCENE }),
        ("0.9 of the link in 40 MB, post-copy",
            Scene { guest: random(0.9, 40e6), post_copy: true, ..SCENE }),
        ("0.9 of the link in 1 MB, 250 ms",
            Scene { guest: random(0.9, 1e6), budget_ms: 250.0, ..SCENE }),
        ("0.9 of the link in 1 GB, 500 ms",
            Scene { guest: random(0.9, 1e9), budget_ms: 500.0, ..SCENE }),
    ];
    for (name, scene) in scenes {
        let story = play(&scene);
        let (end, last_pass_ms) = story.end.expect(name);
        let late: Vec<_> = story.looks.iter().filter(|(at, _)| *at >= end * 0.2).collect();
        let errors = late.iter().filter_map(|(at, told)| Some((at + told.eta_ms()? - end) / end));
        let worst = errors.fold(0.0_f64, |worst, error| {
            if error.abs() > worst.abs() { error } else { worst }
        });
        let first = late.first().and_then(|(_, told)| told.last_pass_ms());
        let (end_s, worst) = (end / 1e3, worst * 100.0);
        println!("{name}: {end_s:.1} s, worst {worst:+.1} %, last pass {last_pass_ms:.0} ms, told \
            {first:?}");
        assert!(wrong_part(&story) <= 0.05, "{name}: {story:?}");
    }
}

#[test]
fn a_move_that_will_be_given_up_says_so_and_what_would_help() {
    let busy = Guest::Random { bytes_per_second: 30e6, set: 60e6 };
    let story = play(&Scene { guest: busy, ..SCENE });
    assert_eq!(story.end, None);
    let told: Vec<_> = story.looks.iter().skip(10).map(|(_, told)| told.name()).collect();
    assert!(told.iter().all(|name| *name == "not-converging"), "{told:?}");
    let least = story.looks.last().and_then(|(_, told)| told.last_pass_ms()).expect("a last pass");
    let willing = Scene { guest: busy, budget_ms: least * 1.1 + 6.0, ..SCENE };
    assert!(play(&willing).end.is_some(), "a budget of {least} ms does not end it");
    assert!(play(&Scene { guest: busy, post_copy: true, ..SCENE }).end.is_some());
    let late = play(&Scene { guest: busy, deadline_ms: 15_000.0, ..SCENE });
    assert_eq!(late.looks.last().map(|(_, told)| told.name()), Some("past-deadline"));
}

#[test]
fn no_estimate_without_a_rate_while_paused_or_at_the_very_start() {
    let curve = DirtyCurve::default();
    let figures = Figures {
        planned_bytes: 1e9,
        done_bytes: 5e8,
        left_bytes: 5e8,
        send_bytes_per_second: Some(1e8),
        dirtying_ms: 5e3,
        curve: &curve,
        situation: fresh(&SCENE),
        decided: false,
        paused: false,
        ended: false,
    };
    assert!(outlook(&figures).eta_ms().is_some_and(|eta| (eta - 5e3).abs() < AIM_MS));
    for silent in [
        Figures { send_bytes_per_second: None, ..figures },
        Figures { paused: true, ..figures },
        Figures { done_bytes: 1e6, ..figures },
    ] {
        assert_eq!(outlook(&silent), Outlook::Unknown, "{silent:?}");
    }
    let decided = Figures { decided: true, left_bytes: 1e6, done_bytes: 0.0, ..figures };
    assert_eq!(outlook(&decided).eta_ms(), Some(10.0));
    assert_eq!(outlook(&Figures { ended: true, ..figures }).eta_ms(), Some(0.0));
}
