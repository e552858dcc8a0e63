//! What a job asks of its runs beyond bringing a folder: rules, what comes first, hooks (`edge-agent/PROTOCOL.md` §2.11,
//! §2.12).

use super::*;
use crate::hook::Hook;

impl Scene {
    /// Everybody takes part in the run of which this is asked.
    async fn ask_all(&self, options: &RunOptions) {
        let all: Vec<&Agent> = self.agents.iter().collect();
        for (n, agent) in self.agents.iter().enumerate() {
            let join = self.fleet.join(&all, agent, self.place(n));
            agent.runs().take_part(TakePart { options: options.clone(), ..part(join) }).await;
        }
    }

    /// The same with a hook that the destination's owner has, with this script.
    async fn ask_with_hook(&mut self, script: &str, options: RunOptions) -> RunCompleted {
        let arguments = vec!["-c".into(), script.into()];
        let hook = Hook { program: "/bin/sh".into(), arguments, timeout: LIMIT };
        let Self { fleet, agents, .. } = self;
        agents[1].halt().await;
        agents[1].hooks.insert("look".into(), hook);
        agents[1].start(fleet).await;
        self.ask_all(&RunOptions { hook: Some("look".into()), ..options }).await;
        self.agents[1].completed().await
    }

    /// Everything at the destination but what is the agent's.
    fn arrived(&self) -> usize {
        let entries = walkdir::WalkDir::new(self.place(1)).into_iter().map(|e| e.expect("readable"));
        entries
            .filter(|e| e.file_type().is_file() && !e.path().starts_with(self.place(1).join(".flotilla")))
            .count()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_of_a_job_stand_beside_those_of_the_folder_and_win() {
    let scene = Scene::new(1 << 16, &[PLAIN; 2]).await;
    fs::write(scene.place(0).join(".flotillaignore"), "/deep/er/\n*1\n").expect("room");
    let rules = vec!["small 2*".into(), "!large 1".into()];
    scene.ask_all(&RunOptions { rules, ..RunOptions::default() }).await;
    assert_eq!(scene.agents[1].completed().await.state, RunAgentState::Done);
    let there = |path: &str| scene.place(1).join(path).exists();
    assert!(!there("deep/er") && !there("deep/small 1") && !there("deep/small 20"));
    assert!(there("large 1") && there("deep/small 30") && there(".flotillaignore"));
    assert!(!scene.place(0).join(".flotilla").exists());
    scene.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_rule_that_is_none_nothing_is_sent() {
    let scene = Scene::new(1 << 16, &[PLAIN; 2]).await;
    let rules = vec!["*.tmp".into(), "[z-a]".into()];
    scene.ask_all(&RunOptions { rules, ..RunOptions::default() }).await;
    let problem = scene.agents[0].wait("the source to fail", || scene.agents[0].problems().pop()).await;
    assert!(problem.detail.contains("rule 2 of the job"), "{}", problem.detail);
    assert_eq!(scene.agents[0].status().state, "failed");
    scene.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_first_has_its_name_before_the_rest_is_there() {
    let scene = Scene::new(8 << 20, &[SLOW, PLAIN]).await;
    fs::create_dir(scene.place(0).join("urgent")).expect("room");
    fs::write(scene.place(0).join("urgent/file"), [7; 100_000]).expect("room");
    let first = vec!["/urgent/".into(), "large 1".into()];
    scene.ask_all(&RunOptions { first, ..RunOptions::default() }).await;
    let at = |path: &str| scene.place(1).join(path).exists();
    // By their names `large 0` comes before all of them, and takes as long as all that is urgent.
    scene.agents[1].wait("what is urgent", || (at("urgent/file") && at("large 1")).then_some(())).await;
    let done = scene.agents[1].status();
    assert!(!at("large 0"), "{} of {} blocks", done.blocks_done, done.blocks_total);
    assert_eq!(scene.agents[1].completed().await.state, RunAgentState::Done);
    assert_same(scene.place(0), scene.place(1));
    scene.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pattern_that_is_none_is_told_and_everything_arrives() {
    let scene = Scene::new(1 << 16, &[PLAIN; 2]).await;
    scene.ask_all(&RunOptions { first: vec!["[z-a]".into()], ..RunOptions::default() }).await;
    assert_eq!(scene.agents[1].completed().await.state, RunAgentState::DoneWithErrors);
    assert!(scene.agents[1].problems().iter().any(|p| p.detail.contains("rule 1 of the job")));
    assert_same(scene.place(0), scene.place(1));
    scene.shut_down().await;
}

/// The hook sees what is new under its path, as it will be, while nothing of it has its name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_sees_what_is_to_get_its_name() {
    let mut scene = Scene::new(1 << 20, &[PLAIN; 2]).await;
    let (source, got) = (scene.place(0).to_owned(), scene.place(1).to_owned());
    // One that is there already, one that is another.
    fs::copy(source.join("large 0"), got.join("large 0")).expect("room");
    fs::write(got.join("large 1"), "older").expect("room");
    let seen = tempfile::tempdir().expect("room");
    let script = format!(
        "set -e; cp -a . '{0}/files'; cp \"$FLOTILLA_DESTINATION/large 1\" '{0}/older'; env > '{0}/env'; \
         ls \"$FLOTILLA_DESTINATION/deep\" > '{0}/deep' || true",
        seen.path().display()
    );
    let end = scene.ask_with_hook(&script, RunOptions::default()).await;
    assert_eq!(end.state, RunAgentState::Done, "{:?}", scene.agents[1].problems());
    assert_same(&source, &got);
    let (of, shown) = (listing(&source), listing(&seen.path().join("files")));
    let is_file = |(path, entry): &(&Vec<u8>, &(u32, i64, i64, Vec<u8>))| {
        entry.0 & 0o170_000 == 0o100_000 && path.as_slice() != b"large 0"
    };
    let files = |all: &BTreeMap<Vec<u8>, (u32, i64, i64, Vec<u8>)>| {
        all.iter().filter(is_file).map(|(path, e)| (path.clone(), e.clone())).collect::<Vec<_>>()
    };
    assert!(files(&of) == files(&shown), "files that are new, with content, mode and time");
    assert_eq!(fs::read_to_string(seen.path().join("older")).expect("copied"), "older");
    let deep = fs::read_to_string(seen.path().join("deep")).unwrap_or_default();
    assert!(!deep.contains("small"), "{deep}");
    let env = fs::read_to_string(seen.path().join("env")).expect("written");
    for line in [
        "FLOTILLA_HOOK=look".to_owned(),
        format!("FLOTILLA_RUN={RUN}"),
        format!("FLOTILLA_JOB={}", JobId([1; 16])),
        "FLOTILLA_JOB_NAME=test".into(),
        format!("FLOTILLA_SOURCE={}", scene.agents[0].id()),
        format!("FLOTILLA_DESTINATION={}", got.display()),
        format!("FLOTILLA_FILES={}/.flotilla/{RUN}/files", got.display()),
    ] {
        assert!(env.lines().any(|l| l == line), "{line} in {env}");
    }
    assert!(!got.join(".flotilla").exists(), "nothing is left of what was shown");
    scene.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_a_hook_does_not_agree_nothing_gets_its_name() {
    let short = RunOptions { hook_timeout_s: Some(1), ..RunOptions::default() };
    for (script, options, why) in [
        ("exit 7", RunOptions::default(), "exit status: 7"),
        ("sleep 1000", short, "did not end within 1s"),
        ("kill -9 $$", RunOptions::default(), "signal: 9"),
    ] {
        let mut scene = Scene::new(1 << 18, &[PLAIN; 2]).await;
        fs::write(scene.place(1).join("large 1"), "older").expect("room");
        let end = scene.ask_with_hook(script, options).await;
        assert_eq!(end.state, RunAgentState::Failed, "{script}");
        let problems = scene.agents[1].problems();
        assert!(problems.iter().any(|p| p.detail.contains(why)), "{script}: {problems:?}");
        assert_eq!(fs::read_to_string(scene.place(1).join("large 1")).expect("there"), "older");
        assert_eq!(scene.arrived(), 1, "{script}");
        // After the run nothing of it is left.
        scene.agents[1].runs().stop(RUN).await;
        assert!(!scene.place(1).join(".flotilla").exists());
        scene.shut_down().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_that_nobody_configured_is_told_before_anything_is_fetched() {
    let scene = Scene::new(1 << 18, &[PLAIN; 2]).await;
    scene.ask_all(&RunOptions { hook: Some("look".into()), ..RunOptions::default() }).await;
    let end = scene.agents[1].completed().await;
    assert_eq!((end.state, end.stats.blocks_fetched), (RunAgentState::Failed, 0));
    let problems = scene.agents[1].problems();
    assert!(problems.iter().any(|p| p.detail.contains("not in this agent's configuration")), "{problems:?}");
    scene.shut_down().await;
}

/// A file that the hook has written to, replaced or removed is not what the source sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_hook_changes_is_not_put_in_place() {
    let mut scene = Scene::new(1 << 18, &[PLAIN; 2]).await;
    let script = "printf x >> 'large 0'; printf y | dd of='deep/small 9' conv=notrunc; rm 'deep/small 10'; \
                  mv 'deep/small 11' elsewhere; echo new > new";
    let end = scene.ask_with_hook(script, RunOptions::default()).await;
    assert_eq!(end.state, RunAgentState::DoneWithErrors);
    let told: Vec<_> = scene.agents[1].problems().iter().map(|p| p.path.escape_ascii().to_string()).collect();
    assert_eq!(told, ["deep/small 9", "large 0"]);
    let there = |path: &str| scene.place(1).join(path).exists();
    assert!(!there("large 0") && !there("deep/small 9") && !there("elsewhere") && !there("new"));
    // Taking away what is shown takes nothing away.
    assert!(there("deep/small 10") && there("deep/small 11") && there("large 1"));
    assert!(!there(".flotilla"));
    scene.shut_down().await;
}

/// An agent that ends while the hook works calls it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_that_was_broken_off_is_called_again() {
    let mut scene = Scene::new(1 << 18, &[PLAIN; 2]).await;
    let seen = tempfile::tempdir().expect("room");
    let at = seen.path().display();
    // The first call never ends.
    let script = format!("if [ -e '{at}/first' ]; then exit 0; fi; touch '{at}/first'; sleep 1000");
    let hook = Hook { program: "/bin/sh".into(), arguments: vec!["-c".into(), script], timeout: LIMIT * 10 };
    {
        let Scene { fleet, agents, .. } = &mut scene;
        agents[1].halt().await;
        agents[1].hooks.insert("look".into(), hook);
        agents[1].start(fleet).await;
    }
    let options = RunOptions { hook: Some("look".into()), ..RunOptions::default() };
    scene.ask_all(&options).await;
    let called = || seen.path().join("first").exists().then_some(());
    scene.agents[1].wait("the hook to be called", called).await;
    scene.agents[1].halt().await;
    assert_eq!(scene.arrived(), 0);
    let Scene { fleet, agents, .. } = &mut scene;
    agents[1].start(fleet).await;
    scene.ask_all(&options).await;
    assert_eq!(scene.agents[1].completed().await.state, RunAgentState::Done);
    assert_same(scene.place(0), scene.place(1));
    scene.shut_down().await;
}

/// Of a version the hook sees all, as a tree, before it has its name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_gets_its_name_when_the_hook_agrees() {
    const NAME: &str = "2026-11-23T013000Z";
    for (script, named) in
        [("test ! -e \"$FLOTILLA_DESTINATION/$FLOTILLA_VERSION\"", true), ("exit 1", false)]
    {
        let mut scene = Scene::new(1 << 18, &[PLAIN; 2]).await;
        let seen = tempfile::tempdir().expect("room");
        let script = format!("cp -a . '{}/tree' && {script}", seen.path().display());
        let hook = Hook { program: "/bin/sh".into(), arguments: vec!["-c".into(), script], timeout: LIMIT };
        let Scene { fleet, agents, .. } = &mut scene;
        agents[1].halt().await;
        agents[1].hooks.insert("look".into(), hook);
        agents[1].start(fleet).await;
        let options = RunOptions { hook: Some("look".into()), ..RunOptions::default() };
        let all: Vec<&Agent> = scene.agents.iter().collect();
        for (n, agent) in scene.agents.iter().enumerate() {
            let (options, purpose) = (options.clone(), event_schema::Purpose::Version { name: NAME.into() });
            let join = scene.fleet.join(&all, agent, scene.place(n));
            agent.runs().take_part(TakePart { options, purpose, ..part(join) }).await;
        }
        let end = scene.agents[1].completed().await;
        let expected = if named { RunAgentState::Done } else { RunAgentState::Failed };
        assert_eq!(end.state, expected, "{:?}", scene.agents[1].problems());
        assert_same(scene.place(0), &seen.path().join("tree"));
        assert_eq!(scene.place(1).join(NAME).exists(), named);
        let told = scene.agents[1].reports().iter().any(|body| matches!(body, ReportBody::VersionKept(_)));
        assert_eq!(told, named);
        scene.shut_down().await;
    }
}
