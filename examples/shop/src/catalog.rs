//! What the shop sells: a fixed table, read once at start.

use std::collections::BTreeMap;

use outpost::BoxError;
use tonic::{Request, Response, Status};

use crate::v1::{
    CatalogGetRequest, CatalogGetResponse, CatalogListRequest, CatalogListResponse, CatalogSearchRequest,
    CatalogSearchResponse, Category, Money, Product,
    catalog_server::{self, CatalogServer},
};

/// `id | name | categories | US cents | grams | attributes | description`
const PRODUCTS: &str = "
    atlas       | World Atlas            | books            |  4500 | 2900 | pages=384, binding=hardcover    | Every country, river and reef on 210 maps.
    backpack    | Trail Backpack 45      | outdoor          | 12900 | 1450 | colour=moss, volume=45 l        | Carries a week of kit and hides the rain cover in its lid.
    blanket     | Wool Blanket           | home, outdoor    |  8900 | 1600 | colour=grey, material=wool      | Warm on the sofa and warmer by a fire.
    bowls       | Stoneware Bowls        | kitchen, home    |  3600 | 2200 | colour=blue, pieces=4           | Four bowls that survive the dishwasher.
    cookbook    | One Pot, Thirty Ways   | books, kitchen   |  2450 |  900 | pages=208, binding=paperback    | Thirty dinners that leave one pot to wash.
    desk-lamp   | Desk Lamp              | office, home     |  5900 | 1800 | colour=black, power=7 W         | Light where you work, and nowhere else.
    espresso    | Stovetop Espresso Pot  | kitchen          |  3200 |  650 | material=aluminium, cups=3      | Three small cups of something strong.
    field-guide | Field Guide to Birds   | books, outdoor   |  1995 |  420 | pages=320, binding=flexible     | Six hundred birds, sorted by what you notice first.
    fountainpen | Fountain Pen           | office           |  4800 |   60 | colour=green, nib=M             | Writes on the first stroke, even on Mondays.
    headlamp    | Headlamp               | outdoor, electronics | 3495 | 110 | light=400 lm, charge=usb-c    | Hands free and light enough to forget.
    headphones  | Studio Headphones      | electronics      | 14900 |  480 | colour=black, cable=3 m         | Closed, comfortable, and honest about your mix.
    kettle      | Gooseneck Kettle       | kitchen, electronics | 7900 | 1300 | colour=steel, volume=0.9 l   | Holds a temperature and pours a thin, steady stream.
    keyboard    | Quiet Keyboard         | office, electronics | 9900 | 870 | layout=iso, cable=usb-c        | Full travel without the noise.
    knife       | Chef's Knife           | kitchen          |  8400 |  310 | blade=20 cm, material=steel     | One knife for nearly everything.
    monitor     | 27 inch Monitor        | office, electronics | 32900 | 6400 | size=27 in, cable=usb-c      | Sharp text, calm colours, one cable.
    mug         | Enamel Mug             | kitchen, outdoor |  1250 |  180 | colour=red, volume=0.35 l       | Falls, chips, and goes on.
    notebook    | Dotted Notebook        | office           |  1450 |  330 | pages=192, paper=100 g          | Lies flat, and the ink stays on its side.
    novel       | The Long Way Down      | books            |  1299 |  280 | pages=344, binding=paperback    | A lighthouse, a letter, and forty years between them.
    radio       | Kitchen Radio          | electronics, kitchen | 6900 | 1100 | colour=cream, band=fm         | Two knobs and a good speaker.
    sleepingbag | Down Sleeping Bag      | outdoor          | 24900 |  980 | colour=navy, comfort=-4 C       | Packs to the size of a loaf.
    stapler     | Steel Stapler          | office           |  2200 |  540 | colour=silver, sheets=30        | The last one you will buy.
    tent        | Two Person Tent        | outdoor          | 34900 | 2100 | colour=orange, season=3         | Up in four minutes, also in wind.
    throw-pillow | Linen Pillow          | home             |  3900 |  700 | colour=ochre, size=50 cm        | Linen outside, feathers inside.
    vase        | Glass Vase             | home             |  2750 | 1250 | colour=clear, height=28 cm      | For tulips that lean.
";

/// Builds the module. It calls no other and has no configuration.
///
/// # Errors
/// When the table of products is malformed.
pub async fn new() -> Result<CatalogServer<Catalog>, BoxError> {
    Ok(CatalogServer::new(Catalog { products: read(PRODUCTS)? }))
}

/// The module. It holds as many products as its table has lines, and never changes.
#[derive(Debug)]
pub struct Catalog {
    products: BTreeMap<String, Product>,
}

#[tonic::async_trait]
impl catalog_server::Catalog for Catalog {
    async fn list(&self, request: Request<CatalogListRequest>) -> Result<Response<CatalogListResponse>, Status> {
        let category = request.into_inner().category;
        let products = self.select(|product| category.is_none_or(|category| product.categories.contains(&category)));
        Ok(Response::new(CatalogListResponse { products }))
    }

    async fn get(&self, request: Request<CatalogGetRequest>) -> Result<Response<CatalogGetResponse>, Status> {
        let product_id = request.into_inner().product_id;
        let Some(product) = self.products.get(&product_id) else {
            return Err(Status::not_found(format!("the shop does not sell `{product_id}`")));
        };
        Ok(Response::new(CatalogGetResponse { product: Some(product.clone()) }))
    }

    async fn search(&self, request: Request<CatalogSearchRequest>) -> Result<Response<CatalogSearchResponse>, Status> {
        let CatalogSearchRequest { query, max_price_cents } = request.into_inner();
        let query = query.to_lowercase();
        let words: Vec<&str> = query.split_whitespace().collect();
        if words.is_empty() {
            return Err(Status::invalid_argument("query has no words"));
        }
        let affordable = |product: &Product| {
            let cents = product.price.as_ref().map_or(0, |price| price.minor_units);
            max_price_cents.is_none_or(|max| cents <= max)
        };
        let products = self.select(|product| affordable(product) && matches(product, &words));
        Ok(Response::new(CatalogSearchResponse { products }))
    }
}

impl Catalog {
    fn select(&self, wanted: impl Fn(&Product) -> bool) -> Vec<Product> {
        self.products.values().filter(|product| wanted(product)).cloned().collect()
    }
}

/// Whether each of the words, which are in lower case, is somewhere in the product.
fn matches(product: &Product, words: &[&str]) -> bool {
    let mut text = format!("{} {}", product.name, product.description).to_lowercase();
    for (name, value) in &product.attributes {
        text.push_str(&format!(" {name} {value}").to_lowercase());
    }
    words.iter().all(|word| text.contains(word))
}

fn read(table: &str) -> Result<BTreeMap<String, Product>, String> {
    let lines = table.lines().map(str::trim).filter(|line| !line.is_empty());
    lines
        .map(|line| match product(line) {
            Some(product) => Ok((product.id.clone(), product)),
            None => Err(format!("malformed product: {line}")),
        })
        .collect()
}

fn product(line: &str) -> Option<Product> {
    let columns: Vec<&str> = line.split('|').map(str::trim).collect();
    let [id, name, categories, cents, grams, attributes, description] = columns[..] else {
        return None;
    };
    let category = |name: &str| {
        let name = format!("CATEGORY_{}", name.trim().to_uppercase());
        Category::from_str_name(&name).map(i32::from)
    };
    let attribute = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        Some((name.trim().to_owned(), value.trim().to_owned()))
    };
    Some(Product {
        id: id.to_owned(),
        name: name.to_owned(),
        description: description.to_owned(),
        categories: categories.split(',').map(category).collect::<Option<_>>()?,
        price: Some(Money::us_cents(cents.parse().ok()?)),
        weight_grams: grams.parse().ok()?,
        attributes: attributes.split(',').map(attribute).collect::<Option<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_well_formed() {
        let products = read(PRODUCTS).unwrap();
        assert_eq!(products.len(), 24);
        for product in products.values() {
            crate::check::id("product_id", &product.id).unwrap();
            assert!(product.price.as_ref().unwrap().minor_units > 0, "{}", product.id);
        }
    }

    #[test]
    fn a_line_with_an_unknown_category_is_refused() {
        assert!(read("a | A | submarines | 1 | 1 | x=y | Z").is_err());
    }

    #[test]
    fn a_search_finds_every_word_anywhere() {
        let products = read(PRODUCTS).unwrap();
        assert!(matches(&products["mug"], &["red", "mug"]));
        assert!(!matches(&products["mug"], &["red", "kettle"]));
    }
}
