//! Every failpoint of every verb: the daemon is killed there, and what was half done is
//! finished or undone.
//!
//! ```text
//! set scene · arm · verb ──✕ berthd · start again (✕ berthd, a few times, for recover.*)
//!   · oracle · verb again · verify · remove · nothing is left
//! ```
//!
//! Which scene passes which point is observed, not told: a new point is swept without a
//! change here, and one that no scene passes is a failure. A round draws one of the ways to
//! its point, or each way has its turn.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use berth_testkit::binaries;
use tokio::task::block_in_place;

use crate::options::Options;
use crate::random::Random;
use crate::scene::{Props, Scene};
use crate::stage::{Brief, Stage};
use crate::tally::{Tally, Times};
use crate::{dump, oracle};

/// How long a verb may take to pass its point.
const REACH: Duration = Duration::from_secs(30);
/// The last point of a start.
const STARTED: &str = "recover.recovered";
/// How long what goes on after a verb's answer, or a start, may take to pass its point.
const AFTER: Duration = Duration::from_secs(5);
/// Pause between two looks whether the daemon is done.
const PAUSE: Duration = Duration::from_millis(100);
/// What goes on after a verb's answer passes its points within this.
const QUIET: Duration = Duration::from_millis(300);
/// Other ways that are tried when one did not lead to its point this time.
const ATTEMPTS: u32 = 5;
/// How often, in percent, a slow scene may be chosen.
const SLOW: u64 = 15;
/// Failures after which nothing more is to be learnt.
const ENOUGH: usize = 40;

/// How a point is reached.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Way {
    scene: Scene,
    /// Where the daemon dies first, for a point of recovery.
    first: Option<String>,
    /// How often the point is passed on this way.
    passes: u64,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.scene)?;
        self.first.as_ref().map_or(Ok(()), |first| write!(f, " after {first}"))
    }
}

#[derive(Debug)]
struct Sweep {
    seed: u64,
    stage: Stage,
    ways: BTreeMap<String, Vec<Way>>,
    ready: Times,
    killed: u64,
    /// Rounds in which the point was not reached.
    missed: u64,
    tally: Tally,
}

/// Kills the daemon at every point that `options` name.
pub(crate) async fn sweep(options: &Options) -> Result<Tally> {
    let points = points(options)?;
    let stage = Stage::new().await?;
    let tally = Tally::new("failpoints");
    let mut sweep = Sweep {
        seed: options.seed,
        stage,
        ways: BTreeMap::new(),
        ready: Times::default(),
        killed: 0,
        missed: 0,
        tally,
    };
    for scene in Scene::ALL {
        let observed = sweep.observe(scene).await;
        sweep.outcome(options, &format!("{scene:?} unharmed"), observed).await?;
    }
    match options.ways {
        None => sweep.draw(options, &points).await?,
        Some(turns) => sweep.each_way(options, &points, turns).await?,
    }
    let ended = sweep.stage.end().await;
    sweep.tally.count("the end", ended);
    let mut tally = sweep.tally;
    tally.fact("failpoints", points.len().to_string());
    tally.fact("kills at a failpoint", sweep.killed.to_string());
    if options.ways.is_some() {
        tally.fact(
            "ways to a failpoint",
            sweep.ways.values().map(Vec::len).sum::<usize>().to_string(),
        );
        tally.fact("ways that led past it this time", sweep.missed.to_string());
    }
    tally.fact("berthd serves again after", sweep.ready.shown());
    Ok(tally)
}

/// The points there are, those of recovery last: kills elsewhere show how to reach them.
fn points(options: &Options) -> Result<Vec<String>> {
    let listed = Command::new(binaries()?.join("berthd")).arg("failpoints").output()?;
    ensure!(listed.status.success(), "berthd failpoints: {}", listed.status);
    let listed = String::from_utf8(listed.stdout)?;
    let names = listed.lines().filter_map(|line| line.split_whitespace().next());
    let mut points: Vec<String> = names.map(str::to_owned).collect();
    ensure!(!points.is_empty(), "berthd has no failpoints");
    points.retain(|point| options.wants(point));
    points.sort_by_key(|point| is_recovery(point));
    Ok(points)
}

fn is_recovery(point: &str) -> bool {
    point.starts_with("recover.")
}

impl Sweep {
    /// Plays a scene without harm, and notes which points it passes.
    async fn observe(&mut self, scene: Scene) -> Result<()> {
        let mut random = Random::new(self.seed, &format!("{scene:?}"));
        let props = scene.set(&mut self.stage, &mut random).await?;
        tokio::time::sleep(QUIET).await;
        self.stage.node.daemon().passed()?;
        let answer = scene.act(self.stage.node.cri.clone(), &props).await?;
        tokio::time::sleep(QUIET).await;
        self.note(scene, None)?;
        self.finish(scene, &props, &answer).await
    }

    /// Notes which points were passed since the last time.
    fn note(&mut self, scene: Scene, first: Option<&str>) -> Result<()> {
        let mut passed: BTreeMap<String, u64> = BTreeMap::new();
        for point in self.stage.node.daemon().passed()? {
            *passed.entry(point).or_default() += 1;
        }
        passed.retain(|point, _| is_recovery(point) == first.is_some());
        for (point, passes) in passed {
            let ways = self.ways.entry(point).or_default();
            let same = |way: &&mut Way| way.scene == scene && way.first.as_deref() == first;
            match ways.iter_mut().find(same) {
                // Some are passed more or less often, as the scheduler has it.
                Some(way) => way.passes = way.passes.min(passes),
                None => ways.push(Way { scene, first: first.map(str::to_owned), passes }),
            }
        }
        Ok(())
    }

    /// Kills the daemon at each point, each time on one of the ways that lead there.
    async fn draw(&mut self, options: &Options, points: &[String]) -> Result<()> {
        for repetition in 0..options.failpoints {
            for point in points {
                if self.is_enough(options) {
                    return Ok(());
                }
                let done = self.round(point, repetition).await;
                self.killed += 1;
                self.outcome(options, &format!("{point} #{repetition}"), done).await?;
            }
        }
        Ok(())
    }

    /// Kills the daemon at each point on each way that leads there.
    async fn each_way(&mut self, options: &Options, points: &[String], turns: u64) -> Result<()> {
        let recovery = points.iter().any(|point| is_recovery(point));
        let mut reached = BTreeSet::new();
        for turn in 0..turns {
            // The ways to the points of recovery are those that were gone to the others.
            let first = self.rounds(|point| {
                !is_recovery(point) && (options.wants(point) || (recovery && turn == 0))
            });
            self.go(options, turn, first, &mut reached).await?;
            let mut then = self.rounds(|point| options.wants(point) && is_recovery(point));
            // There are many, and time may end before they do.
            Random::new(self.seed, &format!("turn {turn}")).shuffle(&mut then);
            self.go(options, turn, then, &mut reached).await?;
        }
        for point in points.iter().filter(|point| !reached.contains(*point)) {
            if !self.is_enough(options) {
                self.outcome(options, point, Err(anyhow!("no scene passes it"))).await?;
            }
        }
        Ok(())
    }

    /// Every known way to the points that are `wanted`.
    fn rounds(&self, wanted: impl Fn(&str) -> bool) -> Vec<(String, Way)> {
        let wanted = self.ways.iter().filter(|(point, _)| wanted(point));
        wanted
            .flat_map(|(point, ways)| ways.iter().map(|way| (point.clone(), way.clone())))
            .collect()
    }

    /// Goes these ways to these points, as long as there is time; notes what was `reached`.
    async fn go(
        &mut self,
        options: &Options,
        turn: u64,
        rounds: Vec<(String, Way)>,
        reached: &mut BTreeSet<String>,
    ) -> Result<()> {
        for (point, way) in rounds {
            if self.is_enough(options) {
                break;
            }
            let round = format!("{point} {way} #{turn}");
            let mut random = Random::new(self.seed, &round);
            let done = self.play(&point, &way, turn % way.passes, &mut random).await;
            if matches!(done, Ok(false)) {
                eprintln!("led past it this time: {round}");
                self.missed += 1;
            } else {
                self.killed += 1;
                reached.insert(point);
            }
            self.outcome(options, &round, done.map(drop)).await?;
        }
        Ok(())
    }

    fn is_enough(&self, options: &Options) -> bool {
        options.expired() || self.tally.failures.len() >= ENOUGH
    }

    /// Kills the daemon at `point`, on one of the ways that lead there.
    async fn round(&mut self, point: &str, repetition: u64) -> Result<()> {
        let mut random = Random::new(self.seed, &format!("{point} {repetition}"));
        if is_recovery(point) {
            self.learn(point, &mut random).await?;
        }
        for _ in 0..ATTEMPTS {
            let mut ways = self.ways.get(point).cloned().unwrap_or_default();
            if ways.iter().any(|way| !way.scene.slow()) && !random.chance(SLOW) {
                ways.retain(|way| !way.scene.slow());
            }
            let way = random.pick(&ways).context("no scene passes it")?;
            let after = if random.chance(50) { 0 } else { random.below(way.passes) };
            if self.play(point, way, after, &mut random).await? {
                return Ok(());
            }
        }
        bail!("no scene passes it any more")
    }

    /// Kills the daemon here and there until a restart passes `point`, if none has so far.
    async fn learn(&mut self, point: &str, random: &mut Random) -> Result<()> {
        for (first, ways) in self.ways.clone() {
            if self.ways.contains_key(point) {
                break;
            }
            if let Some(way) = random.pick(&ways).filter(|way| way.first.is_none()) {
                self.play(&first, way, 0, random).await?;
            }
        }
        Ok(())
    }

    /// One round; says whether the point was reached.
    async fn play(
        &mut self,
        point: &str,
        way: &Way,
        after: u64,
        random: &mut Random,
    ) -> Result<bool> {
        std::fs::File::create(self.stage.node.daemon().log()).context("begin a new log")?;
        let scene = way.scene;
        let props = scene.set(&mut self.stage, random).await?;
        let mut brief = self.stage.brief(random).await?;
        self.stage.node.daemon().passed()?;
        let (first, skip) = match &way.first {
            Some(first) => (first.as_str(), 0),
            None => (point, after),
        };
        self.stage.node.daemon().arm(&format!("{first} kill after={skip}\n"))?;
        let cri = self.stage.node.cri.clone();
        let verb = tokio::spawn({
            let props = props.clone();
            async move { scene.act(cri, &props).await }
        });
        let died = self.died_before(|_| Ok(verb.is_finished()))?;
        if !died {
            // The end of the brief one may pass the point, too.
            self.stage.node.daemon().arm("")?;
        }
        let answer = verb.await?;
        brief.end()?;
        if died {
            scene.meanwhile(&props)?;
        } else {
            let answer = answer.with_context(|| format!("{scene:?}, with {first} not passed"))?;
            self.brief_ended(brief).await?;
            self.finish(scene, &props, &answer).await?;
            return Ok(false);
        }
        let reached = match &way.first {
            Some(_) => self.die_again(point, after, random)?,
            None => true,
        };
        self.recovered(scene, &props, brief, first)
            .await
            .with_context(|| format!("{scene:?}, killed at {first} after {skip} passes"))?;
        Ok(reached)
    }

    /// Waits until the daemon has killed itself, or has not long after it was `done` with
    /// what passes the point; whether it has.
    fn died_before(&mut self, mut done: impl FnMut(&Self) -> Result<bool>) -> Result<bool> {
        let (begun, mut since) = (Instant::now(), None);
        while begun.elapsed() < REACH {
            if self.died(PAUSE)? {
                return Ok(true);
            }
            if done(self)? && since.get_or_insert_with(Instant::now).elapsed() > AFTER {
                break;
            }
        }
        Ok(false)
    }

    /// Waits until the daemon has killed itself; whether it has.
    fn died(&mut self, limit: Duration) -> Result<bool> {
        let Some(status) = block_in_place(|| self.stage.node.daemon_ended(limit))? else {
            return Ok(false);
        };
        ensure!(status.signal() == Some(9), "berthd ended by itself: {status}");
        Ok(true)
    }

    /// Kills the daemon at a point of its start, a few times in a row.
    fn die_again(&mut self, point: &str, after: u64, random: &mut Random) -> Result<bool> {
        self.stage.node.daemon().arm(&format!("{point} kill after={after}\n"))?;
        for time in 0..random.between(1, 3) {
            let before = self.stage.node.daemon().passes(STARTED)?;
            block_in_place(|| self.stage.node.launch_daemon())?;
            if !self.died_before(|sweep| Ok(sweep.stage.node.daemon().passes(STARTED)? > before))? {
                // The first death may leave nothing to be recovered by the second start.
                return Ok(time > 0);
            }
        }
        Ok(true)
    }

    /// A new daemon finds everything, and the verb can be done again.
    async fn recovered(
        &mut self,
        scene: Scene,
        props: &Props,
        brief: Brief,
        died_at: &str,
    ) -> Result<()> {
        self.stage.node.daemon().arm("")?;
        let begun = Instant::now();
        let runs = self.stage.node.daemon().pid().is_some();
        self.stage.node.start_daemon().await.context("start berthd again")?;
        if !runs {
            self.ready.add(begun.elapsed());
        }
        self.stage.check_bystanders(Some(brief)).await?;
        let known = oracle::known_after(&mut self.stage, scene, props).await?;
        block_in_place(|| self.stage.check_leaks(&known)).context("after the restart")?;
        self.note(scene, Some(died_at))?;
        let answer = scene.act(self.stage.node.cri.clone(), props).await.context("try again")?;
        if let Some(id) = oracle::made(&known, &self.stage, props) {
            ensure!(answer.is_empty() || answer == id, "{id} was there, and now {answer} is");
        }
        self.finish(scene, props, &answer).await
    }

    async fn brief_ended(&mut self, brief: Brief) -> Result<()> {
        self.stage.node.wait_exit(brief.id()).await?;
        self.stage.check_bystanders(Some(brief)).await
    }

    /// The verb did what it should; what the scene made goes, and nothing is left of it.
    async fn finish(&mut self, scene: Scene, props: &Props, answer: &str) -> Result<()> {
        scene.verify(&mut self.stage, props, answer).await.context("verify")?;
        let (cri, shared) = (self.stage.node.cri.clone(), self.stage.pod.id.clone());
        scene.clear(cri, &shared, props, answer).await.context("clear")?;
        let known = self.stage.known();
        self.stage.check_lists(&known).await?;
        self.stage.check_images().await?;
        block_in_place(|| self.stage.check_leaks(&known)).context("at the end")
    }

    /// Counts a round; after a failure everything begins anew.
    async fn outcome(&mut self, options: &Options, round: &str, done: Result<()>) -> Result<()> {
        if self.tally.count(round, done) {
            return Ok(());
        }
        dump::keep(options, round, self.stage.node.daemon().log())?;
        let stage = Stage::new().await?;
        drop(std::mem::replace(&mut self.stage, stage));
        Ok(())
    }
}
