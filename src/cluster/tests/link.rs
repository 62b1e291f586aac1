use std::{
    sync::{LazyLock, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinSet,
    time::timeout,
};

use super::*;
use crate::{
    cluster::link::{Event, LinkError, Refused, Script, Subscription, cmd, pipe},
    units::Secret,
};

static ADD: LazyLock<Script> = LazyLock::new(|| Script::new("return redis.call('INCRBY', KEYS[1], ARGV[1])"));

async fn set(link: &Link, key: &str, value: &str) -> Result<(), LinkError> {
    link.query(cmd("SET").arg(key).arg(value)).await
}

async fn get(link: &Link, key: &str) -> Result<Option<String>, LinkError> {
    link.query(cmd("GET").arg(key)).await
}

async fn add(link: &Link, key: &str, count: i64) -> Result<i64, LinkError> {
    link.script(ADD.key(key).arg(count)).await
}

/// Asks until it is answered.
async fn eventually_set(link: &Link, key: &str) {
    let until = Instant::now() + PATIENCE;
    while let Err(error) = set(link, key, "x").await {
        assert!(Instant::now() < until, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn one_server_is_asked_by_commands_pipelines_and_scripts() {
    let redis = Redis::start();
    let link = linked(&redis.url()).await;
    set(&link, "a", "1").await.expect("set");
    assert_eq!(get(&link, "a").await, Ok(Some("1".into())));
    let mut both = pipe();
    both.cmd("INCR").arg("a").cmd("INCR").arg("a");
    assert_eq!(link.pipeline::<(i64, i64)>(&both).await, Ok((2, 3)));
    assert_eq!(add(&link, "a", 7).await, Ok(10));
    redis.cli(&["SCRIPT", "FLUSH"]);
    assert_eq!(add(&link, "a", 1).await, Ok(11), "a script that Redis has forgotten is given again");
    // What Redis refuses and what it should not hold are told apart, and are no reason to take it for away.
    redis.cli(&["RPUSH", "list", "x"]);
    for _ in 0..5 {
        assert_eq!(get(&link, "list").await, Err(LinkError::Refused(Refused::WrongType)));
    }
    assert_eq!(add(&link, "list", 1).await, Err(LinkError::Refused(Refused::WrongType)), "within a script, too");
    set(&link, "text", "x").await.expect("set");
    assert!(matches!(link.query::<u64>(cmd("GET").arg("text")).await, Err(LinkError::Odd(_))));
    assert_eq!((link.state(), link.times_away()), (State::Up, 0));
}

#[tokio::test]
async fn a_wrong_password_is_told_and_not_tried_in_a_storm() {
    let redis = Redis::with_password("right");
    let began = Instant::now();
    let wrong = Config { password: Secret::new("hunter2"), ..config(&redis.url()) };
    let link = Link::start(&wrong).expect("settings");
    let why = link.first_word(PATIENCE).await.expect_err("it is not let in");
    assert!(why.contains("password is wrong") && !why.contains("hunter2"), "{why}");
    let connects = &link.counts().connects;
    while connects.load(Relaxed) < 3 {
        assert!(began.elapsed() < PATIENCE, "it tries again");
        assert_eq!(set(&link, "a", "1").await, Err(LinkError::Away), "meanwhile nobody waits");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let seconds = began.elapsed().as_secs();
    assert!(connects.load(Relaxed) <= seconds + 1, "{connects:?} attempts in {seconds} s");
    assert!(!format!("{link:?}").contains("hunter2"));
    let right = Config { password: Secret::new("right"), ..config(&redis.url()) };
    let link = Link::start(&right).expect("settings");
    link.first_word(PATIENCE).await.expect("it is let in");
    redis.cli(&["ACL", "SETUSER", "reader", "on", ">r", "~*", "+@read", "+@connection"]);
    let reader = Config { user: "reader".into(), password: Secret::new("r"), ..config(&redis.url()) };
    let link = Link::start(&reader).expect("settings");
    link.first_word(PATIENCE).await.expect("it is let in");
    assert_eq!(set(&link, "a", "1").await, Err(LinkError::Refused(Refused::Denied)), "NOPERM");
    assert_eq!(get(&link, "a").await, Ok(None));
}

/// Where something listens that is asked by HTTP.
async fn web() -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut asked = [0; 1024];
            if stream.read(&mut asked).await.is_ok() {
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").await; // who asked may be gone
            }
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_come_right_by_itself_is_told_with_the_setting_that_is_wrong() {
    let (open, closed) = (Redis::start(), Redis::with_password("right"));
    let (sentinels, six) = (Sentinels::start(), Six::start());
    let unasked = ["on", ">right", "~mcp:*", "&mcp:*", "+@all", "-@admin", "-@dangerous"];
    sentinels.servers[0].cli(&[&["ACL", "SETUSER", "unasked"], &unasked[..]].concat());
    closed.cli(&["ACL", "SETUSER", "poor", "on", ">poor", "~*", "-@all", "+@connection"]);
    let with = |user: &str, password: &str, url: String| Config {
        user: user.into(),
        password: Secret::new(password),
        connect_timeout_ms: 2000,
        ..config(&url)
    };
    let port = open.port;
    let at = |form: &str| format!("{form}://127.0.0.1:{port}");
    let sentinel = sentinels.url().replace("+sentinel", "");
    let sentinel = sentinel.split(',').next().expect("the first").to_owned();
    // Each node of a cluster: one of three has the key that is looked at, and the replicas have not.
    let nodes = six.0.iter().map(|node| (with("", "", node.url()), &["redis-cluster://HOST:PORT"][..]));
    let web = web().await;
    for (config, parts) in [
        (
            with("", "hunter2", closed.url()),
            &["password is wrong", "WRONGPASS", "cluster.password_file", "\"default\""][..],
        ),
        (with("ann", "hunter2", closed.url()), &["no such user", "\"ann\"", "cluster.user"]),
        (with("", "", closed.url()), &["wants a password", "NOAUTH", "BIGIRON_CLUSTER__PASSWORD"]),
        (with("", "hunter2", open.url()), &["this Redis has none", "cluster.password_file"]),
        (with("poor", "poor", closed.url()), &["NOPERM", "\"poor\"", "cluster.user"]),
        (with("", "", format!("{}/99", open.url())), &["no database 99", "cluster.redis", "`databases`"]),
        (with("", "", at("redis-cluster")), &["no cluster", "redis://HOST:PORT"]),
        (with("", "", format!("{}/m", at("redis+sentinel"))), &["no sentinel", "26379", "redis://HOST:PORT"]),
        (with("", "", format!("{}no", sentinels.url())), &["no master", "sentinel monitor"]),
        (with("unasked", "right", sentinels.url()), &["NOPERM", "\"unasked\"", "`+role`"]),
        (with("", "", sentinel), &["redis+sentinel://HOST:PORT/MASTER"]),
        (with("", "", at("rediss")), &["without TLS", "tls-port", "cluster.redis"]),
        (with("", "", format!("redis://{web}")), &["is not Redis", "cluster.redis", "6379"]),
        (with("", "", format!("redis-cluster://{web}")), &["is not Redis", "cluster.redis", "6379"]),
    ]
    .into_iter()
    .chain(nodes)
    {
        let link = Link::start(&config).expect("settings");
        let why = link.first_word(PATIENCE).await.expect_err(&config.redis);
        for part in parts {
            assert!(why.contains(part), "{}: {part:?} is missing: {why}", config.redis);
        }
        assert!(!why.contains("hunter2"), "{why}");
    }
}

#[tokio::test]
async fn a_redis_that_was_killed_is_away_until_it_is_back() {
    let mut redis = Redis::start();
    let link = linked(&redis.url()).await;
    assert_eq!(add(&link, "n", 5).await, Ok(5));
    redis.kill();
    until(&link, State::is_away).await;
    assert_eq!(add(&link, "n", 1).await, Err(LinkError::Away));
    assert!(link.is_away());
    redis.restart();
    until(&link, |state| *state == State::Up).await;
    assert_eq!(add(&link, "n", 1).await, Ok(1), "it was started empty, and is used again");
    assert_eq!(link.times_away(), 1);
}

#[tokio::test]
async fn a_connection_that_breaks_is_made_again_and_redis_is_not_away() {
    let redis = Redis::start();
    let link = linked(&redis.url()).await;
    tokio::time::sleep(Duration::from_millis(1300)).await; // the next attempt is due
    redis.cli(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    eventually_set(&link, "a").await;
    assert_eq!(link.times_away(), 0);
}

#[tokio::test]
async fn a_redis_that_hangs_costs_a_command_its_time_and_soon_nothing() {
    let redis = Redis::start();
    let link = up(Link::start(&hasty(&redis.url())).expect("settings")).await;
    redis.hang();
    assert!(matches!(set(&link, "a", "1").await, Err(LinkError::Unknown(_))), "it may have been done");
    until(&link, State::is_away).await;
    for _ in 0..1000 {
        assert_eq!(set(&link, "a", "1").await, Err(LinkError::Away));
    }
    redis.wake();
    until(&link, |state| *state == State::Up).await;
    set(&link, "a", "1").await.expect("set");
}

#[tokio::test]
async fn only_so_many_commands_are_under_way() {
    let redis = Redis::start();
    let few = Config { in_flight_max: 16, ..hasty(&redis.url()) };
    let link = Link::start(&few).expect("settings");
    link.first_word(PATIENCE).await.expect("it is there");
    redis.hang();
    let mut commands = JoinSet::new();
    for _ in 0..50 {
        let link = link.clone();
        commands.spawn(async move { set(&link, "a", "1").await });
    }
    let outcomes = commands.join_all().await;
    redis.wake();
    let crowded = outcomes.iter().filter(|outcome| **outcome == Err(LinkError::Crowded)).count();
    assert_eq!(crowded, 34, "{outcomes:?}");
    assert_eq!(link.in_flight(16), 0, "each place is given back");
}

#[tokio::test]
async fn a_full_redis_and_a_replica_refuse_and_are_not_away() {
    let full = Redis::start_with(&["--maxmemory", "100kb", "--maxmemory-policy", "noeviction"]);
    let link = linked(&full.url()).await;
    assert_eq!(set(&link, "a", "1").await, Err(LinkError::Refused(Refused::Full)));
    assert_eq!(add(&link, "a", 1).await, Err(LinkError::Refused(Refused::Full)), "within a script, too");
    let master = Redis::start();
    let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &master.port.to_string()]);
    let replica_link = linked(&replica.url()).await;
    assert_eq!(set(&replica_link, "a", "1").await, Err(LinkError::Refused(Refused::ReadOnly)));
    assert_eq!(get(&replica_link, "a").await, Ok(None));
    assert_eq!((link.times_away(), replica_link.times_away()), (0, 0));
    let unsaved = Redis::that_cannot_save(|_| {});
    let link = linked(&unsaved.url()).await;
    assert_eq!(set(&link, "a", "1").await, Err(LinkError::Refused(Refused::ReadOnly)), "MISCONF");
    assert_eq!(add(&link, "a", 1).await, Err(LinkError::Refused(Refused::ReadOnly)), "within a script, too");
    assert_eq!((get(&link, "a").await, link.times_away()), (Ok(None), 0));
}

async fn heard(listener: &mut Subscription) -> Event {
    timeout(PATIENCE, listener.next()).await.expect("in time").expect("the runtime lives")
}

/// The text of the next message; what comes before it is no message.
async fn message(listener: &mut Subscription) -> (bool, String) {
    let mut had_gap = false;
    loop {
        match heard(listener).await {
            Event::Message(message) => {
                return (had_gap, String::from_utf8(message.payload).expect("text"));
            }
            Event::Gap => had_gap = true,
            Event::Begun => panic!("it begins once"),
        }
    }
}

#[tokio::test]
async fn a_listener_hears_all_or_is_told_that_it_did_not() {
    let mut redis = Redis::start();
    let link = linked(&redis.url()).await;
    let mut listener = link.subscribe(vec!["news".into(), "other".into()]);
    assert_eq!(heard(&mut listener).await, Event::Begun);
    for text in ["one", "two"] {
        redis.cli(&["PUBLISH", "news", text]);
        assert_eq!(message(&mut listener).await, (false, text.into()));
    }
    redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    assert_eq!(heard(&mut listener).await, Event::Gap, "told once it listens again");
    redis.cli(&["PUBLISH", "other", "three"]);
    assert_eq!(message(&mut listener).await, (false, "three".into()));
    redis.kill();
    redis.restart();
    assert_eq!(heard(&mut listener).await, Event::Gap);
    redis.cli(&["PUBLISH", "news", "four"]);
    assert_eq!(message(&mut listener).await, (false, "four".into()));
}

#[tokio::test]
async fn a_listener_that_is_slow_is_told_so() {
    let redis = Redis::start();
    let link = linked(&redis.url()).await;
    let mut listener = link.subscribe(vec!["news".into()]);
    assert_eq!(heard(&mut listener).await, Event::Begun);
    let mut many = pipe();
    for n in 0..10_000 {
        many.cmd("PUBLISH").arg("news").arg(n).ignore();
    }
    let heard_by_redis = link.pipeline::<()>(&many).await;
    assert!(matches!(heard_by_redis, Ok(()) | Err(LinkError::Unknown(_))), "{heard_by_redis:?}");
    while link.counts().missed.load(Relaxed) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (mut last, mut gaps) = (-1, 0);
    // One more, now and then, until the end has come through.
    while last != 10_000 {
        match timeout(Duration::from_millis(200), listener.next()).await {
            Ok(Some(Event::Gap)) => gaps += 1,
            Ok(Some(Event::Message(message))) => {
                let number: i64 = String::from_utf8(message.payload).expect("text").parse().expect("a number");
                assert!(number == last + 1 || gaps > 0 || number == 10_000, "{last}, {number}");
                last = number;
            }
            Ok(other) => panic!("{other:?}"),
            Err(_) => drop(redis.cli(&["PUBLISH", "news", "10000"])),
        }
    }
    assert!(gaps > 0, "more than fit were sent at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_of_the_sentinels_is_followed() {
    let mut all = Sentinels::start();
    let link = linked(&all.url()).await;
    let mut listener = link.subscribe(vec!["news".into()]);
    assert_eq!(heard(&mut listener).await, Event::Begun);
    set(&link, "a", "1").await.expect("set");
    let old = all.kill_master();
    // Who starts meanwhile is not told that a name is wrong which is right.
    let late = Link::start(&config(&all.url())).expect("settings");
    let mut seen = late.watch();
    until(&link, State::is_away).await;
    let wrong = |state: &State| matches!(state, State::Away(why) if why.contains("sentinel monitor"));
    let right = seen.wait_for(|state| *state == State::Up || wrong(state));
    let state = timeout(PATIENCE, right).await.expect("in time").expect("the link lives").clone();
    assert_eq!(state, State::Up);
    until(&link, |state| *state == State::Up).await;
    eventually_set(&link, "b").await;
    let master = all.master();
    assert_ne!(master, old);
    assert_eq!(all.at(master).cli(&["GET", "b"]), "x", "it was written where the master is");
    assert_eq!(heard(&mut listener).await, Event::Gap);
    until_heard(&mut listener, "after", || drop(all.at(all.master()).cli(&["PUBLISH", "news", "after"]))).await;
}

/// Publishes, and again after each gap: there may be more than one, as sentinels end connections when they make a server
/// a replica, and may fail over twice where all is slow.
async fn until_heard(listener: &mut Subscription, text: &str, publish: impl Fn()) {
    publish();
    loop {
        match heard(listener).await {
            Event::Message(message) if message.payload == text.as_bytes() => return,
            Event::Message(message) => panic!("{message:?}"),
            Event::Gap => publish(),
            Event::Begun => panic!("it begins once"),
        }
    }
}

/// As when a host loses power that has the first sentinel and the master: in the times that there are by default.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sentinel_that_hangs_keeps_no_other_from_being_heard() {
    let mut all = Sentinels::start();
    let hosts: Vec<_> = all.sentinels.iter().rev().map(|sentinel| format!("127.0.0.1:{}", sentinel.port)).collect();
    all.sentinels[2].hang(); // the first that is listed
    let link = Link::start(&hasty(&format!("redis+sentinel://{}/mymaster", hosts.join(",")))).expect("settings");
    let mut listener = link.subscribe(vec!["news".into()]);
    let link = up(link).await;
    assert_eq!(heard(&mut listener).await, Event::Begun);
    all.kill_master();
    until(&link, State::is_away).await;
    until(&link, |state| *state == State::Up).await;
    eventually_set(&link, "b").await;
    assert_eq!(all.at(all.master()).cli(&["GET", "b"]), "x", "it was written where the master is");
    assert_eq!(heard(&mut listener).await, Event::Gap);
    // And it is looked at who the master is.
    let next = Redis::start();
    followed(&link, &all.sentinels[..2], &next).await;
}

/// Has these sentinels name another master, and waits until the link writes there.
async fn followed(link: &Link, sentinels: &[Redis], next: &Redis) {
    let port = next.port.to_string();
    for sentinel in sentinels {
        assert_eq!(sentinel.cli(&["SENTINEL", "REMOVE", "mymaster"]), "OK");
        assert_eq!(sentinel.cli(&["SENTINEL", "MONITOR", "mymaster", "127.0.0.1", &port, "2"]), "OK");
    }
    let until = Instant::now() + PATIENCE;
    while next.cli(&["GET", "a"]) != "x" {
        assert!(Instant::now() < until, "it still writes where no master is");
        eventually_set(link, "a").await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_the_sentinels_name_no_more_is_left_though_it_answers() {
    let (all, next) = (Sentinels::start(), Redis::start());
    let link = linked(&all.url()).await;
    let mut listener = link.subscribe(vec!["news".into()]);
    assert_eq!(heard(&mut listener).await, Event::Begun);
    let before = &all.servers[0];
    // As after a split of the network: nobody tells the one before that it is no master any more, nor its clients.
    followed(&link, &all.sentinels, &next).await;
    assert_eq!(heard(&mut listener).await, Event::Gap);
    until_heard(&mut listener, "after", || drop(next.cli(&["PUBLISH", "news", "after"]))).await;
    assert!(before.cli(&["ROLE"]).starts_with("master"), "it answered all the time");
    assert_eq!(link.times_away(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_six_is_one_redis() {
    let six = Six::start();
    let link = linked(&six.url()).await;
    for n in 0..100 {
        set(&link, &format!("key-{n}"), &n.to_string()).await.expect("set");
    }
    let held = || six.0.iter().map(|server| server.cli(&["DBSIZE"]).parse().expect("a number")).collect::<Vec<u32>>();
    servers::eventually("each key is on a master and its replica", || held().iter().sum::<u32>() == 200);
    let held = held();
    assert!(held.iter().all(|count| *count > 0 && *count < 100), "{held:?}");
    for n in 0..100 {
        assert_eq!(get(&link, &format!("key-{n}")).await, Ok(Some(n.to_string())));
        assert_eq!(add(&link, &format!("count-{n}"), n).await, Ok(n), "a script, wherever its key is");
    }
    let mut listener = link.subscribe(vec!["news".into()]);
    assert_eq!(heard(&mut listener).await, Event::Begun);
    six.0[5].cli(&["PUBLISH", "news", "from elsewhere"]);
    assert_eq!(message(&mut listener).await, (false, "from elsewhere".into()));
}
