use super::*;

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn basic(name: &str, password: &str) -> Credentials {
    Credentials::Basic {
        name: name.to_owned(),
        password: password.to_owned(),
    }
}

fn gate() -> Gate {
    let text = format!(
        "# who may in\n\n{}\n{}\n",
        line("ann", Secret::Password, "right: horse").unwrap(),
        line("bot", Secret::Token, "bot.secret").unwrap()
    );
    Gate::new(Some(Users::parse(&text, "users").unwrap())).unwrap()
}

#[tokio::test]
async fn the_right_secret_opens_and_the_wrong_one_does_not() {
    let gate = gate();
    let user = gate
        .check(HERE, Some(&basic("ann", "right: horse")))
        .await
        .unwrap();
    assert_eq!(user, User("ann".into()));
    let bot = Credentials::Bearer("bot.secret".to_owned());
    assert_eq!(
        gate.check(HERE, Some(&bot)).await.unwrap(),
        User("bot".into())
    );
    for wrong in [
        basic("ann", "wrong"),
        basic("eve", "right: horse"),
        // A token is no password, nor the other way round.
        basic("bot", "bot.secret"),
        Credentials::Bearer("ann.right: horse".to_owned()),
        Credentials::Bearer(String::new()),
    ] {
        let answer = gate.check(HERE, Some(&wrong)).await;
        assert!(matches!(answer, Err(ServeError::Denied)), "{wrong:?}");
    }
    assert!(gate.check(HERE, None).await.is_err());
}

#[tokio::test]
async fn guessing_is_braked_for_that_name_and_not_for_others() {
    let gate = gate();
    gate.check(HERE, Some(&basic("ann", "right: horse")))
        .await
        .unwrap();
    for _ in 0..WRONG_FOR_NAME {
        let answer = gate.check(HERE, Some(&basic("ann", "guess"))).await;
        assert!(matches!(answer, Err(ServeError::Denied)));
    }
    let answer = gate.check(HERE, Some(&basic("ann", "guess"))).await;
    assert!(matches!(
        answer,
        Err(ServeError::Throttled { seconds: 1..=60 })
    ));
    // Who has come in before still comes in, and so do others.
    gate.check(HERE, Some(&basic("ann", "right: horse")))
        .await
        .unwrap();
    let bot = Credentials::Bearer("bot.secret".to_owned());
    gate.check(HERE, Some(&bot)).await.unwrap();
}

#[tokio::test]
async fn a_session_token_stands_for_its_user() {
    let gate = gate();
    let token = gate.open_session(&User("ann".into()));
    let shown = Credentials::Bearer(token.clone());
    assert_eq!(
        gate.check(HERE, Some(&shown)).await.unwrap(),
        User("ann".into())
    );
    let other = Credentials::Bearer(token.replace(&token[..1], "x"));
    assert!(gate.check(HERE, Some(&other)).await.is_err());
}

#[test]
fn a_wrong_line_is_named_without_its_secret() {
    let refuse = |text: &str| Users::parse(text, "users").unwrap_err().to_string();
    assert!(refuse("").contains("names no user"));
    assert!(refuse("# x\nann").starts_with("`users` line 2: expected NAME:password:HASH"));
    assert!(refuse("a b:password:x").contains("a user name is"));
    assert!(refuse("ann:pin:x").contains("neither `password` nor `token`"));
    let plain = refuse("ann:password:hunter2");
    assert!(
        plain.contains("does not parse") && !plain.contains("hunter2"),
        "{plain}"
    );
    assert!(
        refuse("ann:password:$argon2i$v=19$m=8,t=1,p=1$c29tZXNhbHQ$c29tZWhhc2gxMjM0")
            .contains("not argon2id")
    );
}

#[test]
fn headers_are_read_as_rfc_7617_says() {
    // The RFC's own example.
    assert_eq!(
        Credentials::parse(b"Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==").unwrap(),
        basic("Aladdin", "open sesame")
    );
    assert_eq!(
        Credentials::parse(b"bearer abc").unwrap(),
        Credentials::Bearer("abc".to_owned())
    );
    assert_eq!(Credentials::parse(b"Basic OmE").unwrap(), basic("", "a"));
    for wrong in [
        &b""[..],
        b"Basic",
        b"Basic !",
        b"Basic QQ",
        b"Digest x",
        b"Bearer ",
        b"\xff",
        b"Basic QQ====",
        b"Basic Q",
    ] {
        assert!(Credentials::parse(wrong).is_err(), "{wrong:?}");
    }
}

/// Seeded mutation: whatever comes in, the parsers answer and do not panic, and what a mutated users
/// file lets through is never another secret.
#[test]
fn mutated_input_is_answered_and_never_panics() {
    let good_file = "ann:password:$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzYWx0$W1sBUnMZ7uVVg0d0PSpKG5z2VVmWjJOFzBYyDwEQxgw\nbot:token:$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHRzYWx0$W1sBUnMZ7uVVg0d0PSpKG5z2VVmWjJOFzBYyDwEQxgw\n";
    assert!(Users::parse(good_file, "users").is_ok());
    let good_header = b"Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==";
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        // xorshift64*
        seed ^= seed >> 12;
        seed ^= seed << 25;
        seed ^= seed >> 27;
        seed.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    };
    let mut refused = 0;
    for _ in 0..20_000 {
        for good in [good_file.as_bytes(), &good_header[..]] {
            let mut bytes = good.to_vec();
            for _ in 0..=next() % 4 {
                let at = (next() as usize) % bytes.len();
                match next() % 4 {
                    0 => bytes[at] = next() as u8,
                    1 => {
                        bytes.remove(at);
                    }
                    2 => bytes.insert(at, b":$= \n#."[(next() % 7) as usize]),
                    _ => bytes.truncate(at.max(1)),
                }
                if bytes.is_empty() {
                    bytes.push(b'x');
                }
            }
            refused +=
                usize::from(Users::parse(&String::from_utf8_lossy(&bytes), "users").is_err());
            refused += usize::from(Credentials::parse(&bytes).is_err());
        }
    }
    assert!(refused > 20_000);
}
