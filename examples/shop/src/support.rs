//! A scripted assistant.

use futures_util::{StreamExt as _, stream::BoxStream};
use outpost::BoxError;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::v1::{
    ChatRequest, ChatResponse, Order, OrderStatus, OrdersGetRequest, OrdersHandle,
    chat_response::Attachment,
    orders_get_request::Selector,
    support_server::{self, SupportServer},
};

/// Builds the module. It asks orders where an order is.
///
/// # Errors
/// Never.
pub async fn new(orders: OrdersHandle) -> Result<SupportServer<Support>, BoxError> {
    Ok(SupportServer::new(Support { orders }))
}

/// The module. It keeps nothing, not even what was said before in the conversation.
#[derive(Debug)]
pub struct Support {
    orders: OrdersHandle,
}

#[tonic::async_trait]
impl support_server::Support for Support {
    type ChatStream = BoxStream<'static, Result<ChatResponse, Status>>;

    async fn chat(&self, request: Request<Streaming<ChatRequest>>) -> Result<Response<Self::ChatStream>, Status> {
        let orders = self.orders.clone();
        // One message at a time: the next is read once the last is answered, so nothing piles up.
        let answers = request.into_inner().then(move |message| {
            let orders = orders.clone();
            async move { Ok::<_, Status>(answer(&orders, message?).await) }
        });
        Ok(Response::new(answers.boxed()))
    }
}

async fn answer(orders: &OrdersHandle, message: ChatRequest) -> ChatResponse {
    let order_id = match understand(&message.text) {
        Topic::WhereIsOrder(order_id) => order_id,
        topic => return scripted(&topic),
    };
    let selector = Some(Selector::OrderId(order_id.clone()));
    let order = match orders.get(OrdersGetRequest { selector }).await {
        Ok(found) => found.into_inner().order,
        Err(error) if error.code() == Code::NotFound => None,
        Err(error) => {
            // The conversation goes on; it was only this answer that could not be had.
            tracing::warn!(order_id, %error, "failed to look up an order");
            return say("I can't look that up just now. Please ask me again in a moment.", None);
        }
    };
    // To a stranger, someone else's order does not exist.
    match order.filter(|order| order.user_id == message.user_id) {
        Some(order) => {
            let text = format!("Your order {order_id} {}.", progress(&order));
            say(text, Some(Attachment::Order(order)))
        }
        None => say(format!("I can't find an order {order_id} of yours."), None),
    }
}

/// What a message is about.
#[derive(Debug, PartialEq, Eq)]
enum Topic {
    WhereIsOrder(String),
    Order,
    Returns,
    Shipping,
    Greeting,
    Thanks,
    Unknown,
}

fn understand(text: &str) -> Topic {
    let text = text.to_uppercase();
    let is_part_of_word = |character: char| character.is_ascii_alphanumeric() || character == '-';
    let words: Vec<&str> = text.split(|character| !is_part_of_word(character)).collect();
    if let Some(order_id) = words.iter().find(|word| word.starts_with("ORDER-")) {
        return Topic::WhereIsOrder((*order_id).to_owned());
    }
    let topics: [(Topic, &[&str]); 5] = [
        (Topic::Returns, &["RETURN", "RETURNS", "REFUND", "EXCHANGE"]),
        (Topic::Shipping, &["SHIPPING", "SHIP", "DELIVERY", "DELIVER"]),
        (Topic::Order, &["ORDER", "ORDERS", "PARCEL"]),
        (Topic::Thanks, &["THANKS", "THANK"]),
        (Topic::Greeting, &["HELLO", "HI", "HEY"]),
    ];
    let spoken_of = topics.into_iter().find(|(_, names)| words.iter().any(|word| names.contains(word)));
    spoken_of.map_or(Topic::Unknown, |(topic, _)| topic)
}

fn scripted(topic: &Topic) -> ChatResponse {
    let link = |page: &str| Some(Attachment::Link(format!("https://shop.example/help/{page}")));
    match topic {
        Topic::WhereIsOrder(_) | Topic::Order => say("Which order is it? Please tell me its number, ORDER-...", None),
        Topic::Returns => say("You can send anything back within 30 days.", link("returns")),
        Topic::Shipping => say("Parcels take two to four working days.", link("shipping")),
        Topic::Greeting => say("Hello! What can I do for you?", None),
        Topic::Thanks => say("You're welcome.", None),
        Topic::Unknown => say("I know about orders, shipping and returns. What is it about?", link("contact")),
    }
}

/// Ends the sentence that begins with "Your order".
fn progress(order: &Order) -> String {
    let tracking_id = order.tracking_id.as_deref().unwrap_or("unknown");
    match order.status() {
        OrderStatus::Unspecified => "is in an unknown state".to_owned(),
        OrderStatus::Placed => "has been placed".to_owned(),
        OrderStatus::Paid => "has been paid and will be packed next".to_owned(),
        OrderStatus::Packed => "has been packed and waits for the carrier".to_owned(),
        OrderStatus::Shipped => format!("has been shipped as parcel {tracking_id}"),
        OrderStatus::Delivered => format!("has been delivered as parcel {tracking_id}"),
    }
}

fn say(text: impl Into<String>, attachment: Option<Attachment>) -> ChatResponse {
    ChatResponse { text: text.into(), attachment }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_number_is_found_in_any_sentence() {
        for text in ["where is my order ORDER-1A-000001?", "(order-1a-000001) hello, returns"] {
            assert_eq!(understand(text), Topic::WhereIsOrder("ORDER-1A-000001".into()), "{text}");
        }
    }

    #[test]
    fn a_word_decides_and_not_a_part_of_one() {
        for (text, topic) in [
            ("Hi!", Topic::Greeting),
            ("this", Topic::Unknown),
            ("Where's my parcel?", Topic::Order),
            ("thanks for the fast delivery", Topic::Shipping),
            ("Can I return it?", Topic::Returns),
            ("", Topic::Unknown),
        ] {
            assert_eq!(understand(text), topic, "{text}");
        }
    }
}
