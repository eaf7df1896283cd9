//! Takes money from cards, and gives it back. Nothing real is charged.
//!
//! A card's number is never kept and never logged: of a card, only what `Checked` holds goes on.

use outpost::{BoxError, Config, Context, Secret, Snapshot, SnapshotReader, SnapshotWriter, State};
use serde::{Deserialize, Serialize};
use tonic::{Request, Response, Status};

use crate::{
    check,
    clock::{self, Month},
    ids::Ids,
    recent::Recent,
    state::{self, Locked, v1 as written},
    v1::{
        Card, Charge, ChargeRequest, ChargeResponse, Money, RefundRequest, RefundResponse,
        payment_server::{self, PaymentServer},
    },
};

/// A well-formed number that the bank always declines.
const DECLINED_CARD: &str = "4000000000000002";

/// Longest idempotency key. It bounds what a caller can make the module remember.
const MAX_KEY_BYTES: usize = 300;

/// How payments are made, under `[modules.payment]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PaymentConfig {
    /// The shop's key at the bank. Without one, charges are marked as made in test mode.
    pub merchant_key: Secret,
    /// How many charges are remembered, to be refunded or asked for again. The oldest are forgotten first.
    pub max_charges: usize,
}

impl Default for PaymentConfig {
    fn default() -> Self {
        Self { merchant_key: Secret::default(), max_charges: 10_000 }
    }
}

/// Builds the module. It calls no other.
///
/// # Errors
/// Never.
pub async fn new(
    ctx: Context,
    config: Config<PaymentConfig>,
    ledger: State<Locked<Ledger>>,
) -> Result<PaymentServer<Payment>, BoxError> {
    let test_mode = config.merchant_key.expose().is_empty();
    if test_mode {
        tracing::info!("no merchant key: payments are in test mode");
    }
    Ok(PaymentServer::new(Payment { test_mode, max_charges: config.max_charges, ids: Ids::new("CHARGE", ctx), ledger }))
}

/// The module. It keeps the last `max_charges` charges.
#[derive(Debug)]
pub struct Payment {
    test_mode: bool,
    max_charges: usize,
    ids: Ids,
    ledger: State<Locked<Ledger>>,
}

#[tonic::async_trait]
impl payment_server::Payment for Payment {
    async fn charge(&self, request: Request<ChargeRequest>) -> Result<Response<ChargeResponse>, Status> {
        let ChargeRequest { idempotency_key, amount, card } = request.into_inner();
        if idempotency_key.is_empty() || idempotency_key.len() > MAX_KEY_BYTES {
            return Err(Status::invalid_argument(format!("idempotency_key must be 1 to {MAX_KEY_BYTES} bytes")));
        }
        let amount = check::present("amount", amount)?;
        if amount.currency_code.len() != 3 {
            return Err(Status::invalid_argument("amount.currency_code must be three letters"));
        }
        if amount.minor_units <= 0 {
            return Err(Status::invalid_argument("amount must be more than 0"));
        }
        let card = Checked::try_from(check::present("card", card)?)?;
        let today = Month::of(clock::unix_ms());

        let charge = self.ledger.with(|ledger| -> Result<Charge, Status> {
            if let Some(charge) = ledger.made_before(&idempotency_key, &amount, &card)? {
                return Ok(charge);
            }
            card.is_accepted(today)?;
            let charge = Charge {
                id: self.ids.fresh(),
                amount: Some(amount),
                card_last_four: card.last_four,
                refunded: false,
                test_mode: self.test_mode,
            };
            ledger.record(idempotency_key, charge.clone(), self.max_charges);
            Ok(charge)
        })?;
        Ok(Response::new(ChargeResponse { charge: Some(charge) }))
    }

    async fn refund(&self, request: Request<RefundRequest>) -> Result<Response<RefundResponse>, Status> {
        let charge_id = request.into_inner().charge_id;
        let refunded = self.ledger.with(|ledger| ledger.refund(&charge_id));
        let Some(charge) = refunded else {
            return Err(Status::not_found(format!("there is no charge `{charge_id}`")));
        };
        Ok(Response::new(RefundResponse { charge: Some(charge) }))
    }
}

/// The charges. Both maps get an entry at the same time, and so forget the same charges.
#[derive(Debug, Default)]
pub struct Ledger {
    ids_by_key: Recent<String>,
    charges: Recent<Charge>,
}

impl Snapshot for Locked<Ledger> {
    async fn snapshot(&self, out: &mut SnapshotWriter) -> Result<(), BoxError> {
        state::write(out, self.with(|ledger| ledger.written())).await
    }

    async fn restore(&self, from: &mut SnapshotReader) -> Result<(), BoxError> {
        let ledger = Ledger::read(state::read(from).await?)?;
        self.with(|mine| *mine = ledger);
        Ok(())
    }
}

impl Ledger {
    /// The charge that this key stands for. A key can't be used for something else, nor again after a refund: whoever
    /// does believes in a payment that isn't there.
    fn made_before(&self, key: &str, amount: &Money, card: &Checked) -> Result<Option<Charge>, Status> {
        let Some(charge) = self.ids_by_key.get(key).and_then(|id| self.charges.get(id)) else {
            return Ok(None);
        };
        if charge.amount.as_ref() != Some(amount) || charge.card_last_four != card.last_four {
            return Err(Status::invalid_argument("idempotency_key was used for another amount or card"));
        }
        if charge.refunded {
            return Err(Status::failed_precondition("the charge of this idempotency_key was refunded; use a new key"));
        }
        Ok(Some(charge.clone()))
    }

    fn record(&mut self, key: String, charge: Charge, max_charges: usize) {
        self.ids_by_key.insert(key, charge.id.clone(), max_charges);
        self.charges.insert(charge.id.clone(), charge, max_charges);
    }

    fn refund(&mut self, id: &str) -> Option<Charge> {
        let charge = self.charges.get_mut(id)?;
        charge.refunded = true;
        Some(charge.clone())
    }

    fn written(&self) -> written::Payment {
        let known = |(key, id): (&String, &String)| written::KnownCharge {
            idempotency_key: key.clone(),
            charge: self.charges.get(id).cloned(),
        };
        written::Payment { charges: self.ids_by_key.iter().map(known).collect() }
    }

    fn read(written: written::Payment) -> Result<Self, BoxError> {
        let mut ledger = Self::default();
        for written::KnownCharge { idempotency_key, charge } in written.charges {
            ledger.record(idempotency_key, charge.ok_or("a key has no charge")?, usize::MAX);
        }
        Ok(ledger)
    }
}

/// What is known of a card whose number and date are well-formed. Safe to log.
#[derive(Debug)]
struct Checked {
    last_four: String,
    good_until: Month,
    declined: bool,
}

impl TryFrom<Card> for Checked {
    type Error = Status;

    fn try_from(card: Card) -> Result<Self, Status> {
        let number: String = card.number.chars().filter(|character| *character != ' ').collect();
        if !is_card_number(&number) {
            return Err(Status::invalid_argument("the card number is not valid"));
        }
        if !(1..=12).contains(&card.expiry_month) || !(2000..=9999).contains(&card.expiry_year) {
            return Err(Status::invalid_argument("the card's expiry date is not valid"));
        }
        Ok(Self {
            last_four: number[number.len() - 4..].to_owned(),
            good_until: Month { year: card.expiry_year.into(), month: card.expiry_month.into() },
            declined: number == DECLINED_CARD,
        })
    }
}

impl Checked {
    fn is_accepted(&self, today: Month) -> Result<(), Status> {
        let why = match (self.good_until < today, self.declined) {
            (true, _) => "has expired",
            (false, true) => "was declined",
            (false, false) => return Ok(()),
        };
        Err(Status::failed_precondition(format!("the card ending in {} {why}", self.last_four)))
    }
}

/// Whether these are 12 to 19 digits, of which the last is the Luhn check digit of the others.
fn is_card_number(number: &str) -> bool {
    if !(12..=19).contains(&number.len()) || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return false;
    }
    let digits = number.bytes().rev().map(|byte| u32::from(byte - b'0'));
    let sum: u32 = digits
        .enumerate()
        .map(|(place, digit)| match (place % 2, digit * 2) {
            (0, _) => digit,
            (_, double @ 10..) => double - 9,
            (_, double) => double,
        })
        .sum();
    sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "4111 1111 1111 1111";
    const TODAY: Month = Month { year: 2025, month: 6 };

    fn card(number: &str, expiry_year: u32, expiry_month: u32) -> Result<Checked, Status> {
        Checked::try_from(Card { number: number.into(), expiry_month, expiry_year })
    }

    #[test]
    fn the_check_digit_catches_typos() {
        for good in ["4111111111111111", "378282246310005", "5555555555554444", DECLINED_CARD] {
            assert!(is_card_number(good), "{good}");
        }
        let swapped = "5555555555545444";
        for bad in ["4111111111111112", swapped, "0", "", "4111-1111-1111", "411111111111111é"] {
            assert!(!is_card_number(bad), "{bad}");
        }
    }

    #[test]
    fn a_card_is_good_until_its_month_ends() {
        for (year, month, accepted) in [(2025, 6, true), (2026, 1, true), (2025, 5, false)] {
            let answer = card(GOOD, year, month).unwrap().is_accepted(TODAY);
            assert_eq!(answer.is_ok(), accepted, "{year}-{month}");
        }
        assert!(card(GOOD, 2030, 13).is_err());
    }

    #[test]
    fn only_four_digits_of_a_card_are_told() {
        let card = card(DECLINED_CARD, 2030, 1).unwrap();
        let told = format!("{card:?} {}", card.is_accepted(TODAY).unwrap_err());
        assert!(told.contains("0002") && !told.contains("00000002"), "{told}");
    }

    #[test]
    fn a_key_stands_for_one_charge() {
        let (card, amount) = (card(GOOD, 2030, 1).unwrap(), Money::us_cents(500));
        let mut ledger = Ledger::default();
        let charge = Charge {
            id: "C1".into(),
            amount: Some(amount.clone()),
            card_last_four: card.last_four.clone(),
            ..Charge::default()
        };
        assert_eq!(ledger.made_before("key", &amount, &card).unwrap(), None);
        ledger.record("key".into(), charge.clone(), 10);
        assert_eq!(ledger.made_before("key", &amount, &card).unwrap(), Some(charge));
        let other = ledger.made_before("key", &Money::us_cents(501), &card).unwrap_err();
        assert_eq!(other.code(), tonic::Code::InvalidArgument);
        assert!(ledger.refund("C1").unwrap().refunded);
        let refunded = ledger.made_before("key", &amount, &card).unwrap_err();
        assert_eq!(refunded.code(), tonic::Code::FailedPrecondition);
    }
    #[tokio::test]
    async fn what_a_key_stands_for_is_the_same_after_a_move() {
        let (card, amount) = (card(GOOD, 2030, 1).unwrap(), Money::us_cents(500));
        let charge = |id: &str| Charge {
            id: id.into(),
            amount: Some(amount.clone()),
            card_last_four: card.last_four.clone(),
            ..Charge::default()
        };
        let (source, target) = (State::new(Locked::default()), State::new(Locked::default()));
        source.with(|source: &mut Ledger| {
            for number in ["2", "1", "3"] {
                source.record(format!("key {number}"), charge(number), 10);
            }
            source.refund("1");
        });
        State::load(&target, State::save(&source).await.unwrap()).await.unwrap();
        target.with(|target: &mut Ledger| {
            assert_eq!(target.made_before("key 2", &amount, &card).unwrap(), Some(charge("2")));
            assert_eq!(
                target.made_before("key 1", &amount, &card).unwrap_err().code(),
                tonic::Code::FailedPrecondition
            );
            // The bound is that of the node where the module is; the oldest are forgotten first, as before.
            target.record("key 4".into(), charge("4"), 2);
            let known = ["1", "2", "3", "4"].map(|id| target.charges.get(id).is_some());
            assert_eq!(known, [false, false, true, true]);
            assert_eq!(target.made_before("key 2", &amount, &card).unwrap(), None);
        });
    }
}
