//! What an instance may do with a Redis that it has just reached: nothing before it is known whose it is, and nothing at
//! all where the settings are plainly wrong, which is told with the one that is.

use serde_json::json;
use tokio::time::timeout;

use super::{tls::Secure, *};
use crate::{
    cluster::{
        About, Cluster, JoinError, LastStop, Start, Status,
        link::{Event, LinkError},
        sessions::Hash,
    },
    units::Secret,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn until_it_is_known_whose_it_is_nothing_passes() {
    let mut redis = Redis::start();
    redis.kill();
    let late = Cluster::connect(&config(&redis.url()), own("")).await.expect("it is let in without Redis");
    let (records, hash) = (late.records(std::time::Duration::from_secs(60)), Hash::of([7; 16]));
    let mut heard = late.link.subscribe(vec![late.keys.sessions()]);
    redis.restart();
    until(&late.link, |state| *state == State::Up).await;
    // Redis is back, and the name was not claimed yet.
    for _ in 0..100 {
        assert_eq!(records.load(hash).await, Err(LinkError::Away));
        assert_eq!(records.tell_cancelled(hash, &json!(1)).await, Err(LinkError::Away));
        assert!(late.link.is_away() && late.word() == "away");
    }
    assert_eq!((redis.cli(&["DBSIZE"]), redis.cli(&["PUBSUB", "CHANNELS"])), ("0".into(), String::new()));
    late.join(Box::new(|| Some(About::default())));
    late.status(Status::Running).await;
    assert!(!late.link.is_away() && late.word() == "up");
    assert!(records.load(hash).await.is_ok());
    assert_eq!(timeout(PATIENCE, heard.next()).await, Ok(Some(Event::Begun)));
    late.leave().await;
}

fn removing(config: Config) -> Config {
    Config { last_stop: LastStop::Remove, ..config }
}

/// It is not let in, and is told the rule that is missing.
async fn is_told(config: &Config, rule: &str) {
    let refused = Config { start: Start::Refuse, ..config.clone() };
    let Err(JoinError::Away(why)) = Cluster::connect(&refused, own("")).await else { panic!("{}", config.user) };
    let rule = format!("`ACL SETUSER {} {rule}`", config.user);
    for part in ["NOPERM", &rule, "cluster.user", "`~mcp:* &mcp:*`"] {
        assert!(why.contains(part), "{}: {part:?} is missing: {why}", config.user);
    }
    let degraded = Cluster::connect(config, own("")).await.expect("it is let in as without Redis");
    assert_eq!(degraded.word(), "away", "{}", config.user);
}

#[tokio::test]
async fn who_may_not_do_what_instances_do_is_not_in() {
    let redis = Redis::start();
    let user = |name: &str, rights: &[&str]| {
        redis.cli(&[&["ACL", "SETUSER", name, "on", ">pass", "resetchannels", "+@all", "-@admin"], rights].concat());
        Config { user: name.into(), password: Secret::new("pass"), ..config(&redis.url()) }
    };
    for (config, rule) in [
        (user("elsewhere", &["~other:*", "&mcp:*"]), "~mcp:*"),
        (user("reader", &["~mcp:*", "&mcp:*", "-@write"]), "+pexpire"),
        (user("unscripted", &["~mcp:*", "&mcp:*", "-@scripting"]), "+script|load"),
        (user("unloaded", &["~mcp:*", "&mcp:*", "-script"]), "+script|load"),
        (user("unhashed", &["~mcp:*", "&mcp:*", "-evalsha"]), "+evalsha"),
        (user("mute", &["~mcp:*"]), "&mcp:*"),
        (user("uncounted", &["~mcp:*", "&mcp:*", "-pubsub"]), "+pubsub|numsub"),
        (user("timeless", &["~mcp:*", "&mcp:*", "-time"]), "+time"),
        (user("unread", &["~mcp:*", "&mcp:*", "-hgetall", "-xrange"]), "+hgetall"),
        (removing(user("blind", &["~mcp:*", "&mcp:*", "-scan"])), "+scan"),
        (removing(user("keeper", &["~mcp:*", "&mcp:*", "-unlink"])), "+unlink"),
    ] {
        is_told(&config, rule).await;
    }
    // Scripts are run by their hash, and no other way is needed.
    let right = user("right", &["~mcp:*", "&mcp:*", "-eval", "-scan", "-unlink", "-restore"]);
    let right = Cluster::connect(&right, own("")).await.expect("it is let in");
    assert_eq!(right.word(), "up");
    assert_eq!(redis.cli(&["KEYS", "*"]), "mcp:cluster", "looking whether it may leaves nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_cluster_each_master_is_to_allow_it() {
    let six = Six::start();
    let masters = six.masters();
    let probed: u16 = six.0[0].cli(&["CLUSTER", "KEYSLOT", "mcp:cluster"]).parse().expect("a slot");
    let other = masters.iter().copied().find(|of| !six.has_slot(*of, probed)).expect("two of three");
    let user = |name: &str, lacks: &[&str]| {
        for (at, node) in six.0.iter().enumerate() {
            let all = ["ACL", "SETUSER", name, "on", ">pass", "resetchannels", "~mcp:*", "&mcp:*", "+@all", "-@admin"];
            let lacks = if at == other { lacks } else { &[] };
            assert_eq!(node.cli(&[&all, lacks].concat()), "OK");
        }
        Config { user: name.into(), password: Secret::new("pass"), ..config(&six.url()) }
    };
    for (config, rule) in [
        (user("uninformed", &["-cluster|info"]), "+cluster|info"),
        (user("unread", &["-hgetall"]), "+hgetall"),
        (user("unmoved", &["-asking"]), "+asking"),
        (removing(user("blind", &["-scan"])), "+scan"),
        (removing(user("keeper", &["-unlink"])), "+unlink"),
    ] {
        is_told(&config, rule).await;
    }
    // Who has which slots is asked of any node.
    let lost = user("lost", &[]);
    six.0.iter().for_each(|node| assert_eq!(node.cli(&["ACL", "SETUSER", "lost", "-cluster|slots"]), "OK"));
    is_told(&lost, "+cluster|slots").await;
    let right = removing(user("right", &["-cluster|nodes", "-eval", "-restore"]));
    assert_eq!(Cluster::connect(&right, own("")).await.expect("it is let in").word(), "up");
}

#[tokio::test]
async fn what_is_ours_stays_so_in_a_redis_that_takes_no_writes() {
    let (redis, master) = (Redis::start(), Redis::start());
    drop(Cluster::connect(&config(&redis.url()), own("")).await.expect("it is let in"));
    for way in [&["CONFIG", "SET", "maxmemory", "1"][..], &["REPLICAOF", "127.0.0.1", &master.port.to_string()]] {
        if way[0] == "REPLICAOF" {
            redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
            assert_eq!(master.cli(&["SET", "mcp:cluster", "bigiron"]), "OK");
        }
        redis.cli(way);
        servers::eventually("it is there", || redis.cli(&["GET", "mcp:cluster"]) == "bigiron");
        let later = Cluster::connect(&config(&redis.url()), own("")).await.expect("it is let in");
        assert!(!later.link.is_away() && !later.link.is_foreign(), "{way:?}");
    }
    let unsaved = Redis::that_cannot_save(|redis| assert_eq!(redis.cli(&["SET", "mcp:cluster", "bigiron"]), "OK"));
    let later = Cluster::connect(&config(&unsaved.url()), own("")).await.expect("it is let in");
    assert!(!later.link.is_away() && !later.link.is_foreign());
    later.join(Box::new(|| Some(About::default())));
    later.status(Status::Running).await;
    assert_eq!(later.word(), "read-only");
}

#[tokio::test]
async fn tls_where_there_is_none_and_none_where_there_is_are_told() {
    let secure = Secure::start_with(&[]);
    for (form, end) in [("", ""), ("-cluster", ""), ("+sentinel", "/m")] {
        for (scheme, port, parts) in [
            ("redis", secure.port, ["speaks TLS", "to begin with rediss in place of redis", "cluster.redis"]),
            ("rediss", secure.redis.port, ["without TLS", "to begin with redis in place of rediss", "cluster.redis"]),
        ] {
            let url = format!("{scheme}{form}://localhost:{port}{end}");
            let link = Link::start(&Config { ca_file: secure.certificate(), ..config(&url) }).expect("settings");
            let why = link.first_word(PATIENCE).await.expect_err(&url);
            for part in parts {
                assert!(why.contains(part), "{url}: {part:?} is missing: {why}");
            }
        }
    }
}
