//! What buyers think.

use std::collections::{HashMap, HashSet};

use outpost::{BoxError, Config};
use serde::{Deserialize, Serialize};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    check,
    state::State,
    v1::{
        CatalogGetRequest, CatalogHandle, Review, ReviewSummary, ReviewsListRequest, ReviewsListResponse,
        UploadRequest, UploadResponse,
        reviews_server::{self, ReviewsServer},
    },
};

/// Longest text of a review.
const MAX_TEXT_BYTES: usize = 2_000;

/// The bounds of what is kept, under `[modules.reviews]`. An upload beyond one of them is RESOURCE_EXHAUSTED.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReviewsConfig {
    /// Most reviews of one product.
    pub max_per_product: usize,
    /// Most reviews in one upload.
    pub max_per_upload: usize,
}

impl Default for ReviewsConfig {
    fn default() -> Self {
        Self { max_per_product: 1_000, max_per_upload: 500 }
    }
}

/// Builds the module. It asks the catalog whether a product exists.
///
/// # Errors
/// Never.
pub async fn new(config: Config<ReviewsConfig>, catalog: CatalogHandle) -> Result<ReviewsServer<Reviews>, BoxError> {
    Ok(ReviewsServer::new(Reviews { config: config.into_inner(), catalog, kept: State::default() }))
}

/// The module. It keeps at most `max_per_product` reviews of each product in the catalog, of about 2 kB each.
#[derive(Debug)]
pub struct Reviews {
    config: ReviewsConfig,
    catalog: CatalogHandle,
    kept: State<Kept>,
}

#[tonic::async_trait]
impl reviews_server::Reviews for Reviews {
    async fn upload(&self, request: Request<Streaming<UploadRequest>>) -> Result<Response<UploadResponse>, Status> {
        let mut incoming = request.into_inner();
        let mut uploaded = Vec::new();
        let mut known_products = HashSet::new();
        while let Some(UploadRequest { review }) = incoming.message().await? {
            let review = check::present("review", review)?;
            is_publishable(&review)?;
            if uploaded.len() >= self.config.max_per_upload {
                let max = self.config.max_per_upload;
                return Err(Status::resource_exhausted(format!("an upload holds {max} reviews")));
            }
            if !known_products.contains(&review.product_id) {
                let product_id = review.product_id.clone();
                self.catalog.get(CatalogGetRequest { product_id }).await?;
                known_products.insert(review.product_id.clone());
            }
            uploaded.push(review);
        }
        let summary = summary(&uploaded);
        self.kept.with(|kept| kept.add(uploaded, self.config.max_per_product))?;
        Ok(Response::new(UploadResponse { summary: Some(summary) }))
    }

    async fn list(&self, request: Request<ReviewsListRequest>) -> Result<Response<ReviewsListResponse>, Status> {
        let ReviewsListRequest { product_id, limit } = request.into_inner();
        let (reviews, summary) = self.kept.with(|kept| {
            let all = kept.by_product.get(&product_id).map_or(&[][..], Vec::as_slice);
            let newest = all.iter().rev().take(check::limit(limit)).cloned().collect();
            (newest, summary(all))
        });
        Ok(Response::new(ReviewsListResponse { reviews, summary: Some(summary) }))
    }
}

fn is_publishable(review: &Review) -> Result<(), Status> {
    check::id("review.user_id", &review.user_id)?;
    if !(1..=5).contains(&review.rating) {
        return Err(Status::invalid_argument("review.rating must be 1 to 5"));
    }
    if review.text.as_ref().is_some_and(|text| text.len() > MAX_TEXT_BYTES) {
        return Err(Status::invalid_argument(format!("review.text must be at most {MAX_TEXT_BYTES} bytes")));
    }
    Ok(())
}

fn summary(reviews: &[Review]) -> ReviewSummary {
    let count = u32::try_from(reviews.len()).unwrap_or(u32::MAX);
    let sum: f64 = reviews.iter().map(|review| f64::from(review.rating)).sum();
    ReviewSummary { count, average_rating: if count == 0 { 0.0 } else { sum / f64::from(count) } }
}

/// All reviews, of each product the oldest first.
#[derive(Debug, Default)]
struct Kept {
    by_product: HashMap<String, Vec<Review>>,
}

impl Kept {
    /// Adds all of the reviews or, when one product would have too many, none.
    fn add(&mut self, reviews: Vec<Review>, max_per_product: usize) -> Result<(), Status> {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for Review { product_id, .. } in &reviews {
            let count = counts.entry(product_id).or_insert_with(|| self.by_product.get(product_id).map_or(0, Vec::len));
            *count += 1;
            if *count > max_per_product {
                return Err(Status::resource_exhausted(format!(
                    "`{product_id}` has {max_per_product} reviews, which is enough"
                )));
            }
        }
        for review in reviews {
            self.by_product.entry(review.product_id.clone()).or_default().push(review);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review(product_id: &str, rating: u32) -> Review {
        Review { product_id: product_id.into(), user_id: "ada".into(), rating, text: None }
    }

    #[test]
    fn a_summary_counts_and_averages() {
        let of = |ratings: &[u32]| {
            let reviews: Vec<Review> = ratings.iter().map(|r| review("mug", *r)).collect();
            let ReviewSummary { count, average_rating } = summary(&reviews);
            (count, average_rating)
        };
        assert_eq!(of(&[]), (0, 0.0));
        assert_eq!(of(&[5, 4, 5, 4]), (4, 4.5));
    }

    #[test]
    fn an_upload_that_does_not_fit_leaves_nothing() {
        let mut kept = Kept::default();
        kept.add(vec![review("mug", 5)], 2).unwrap();
        let upload = vec![review("tent", 4), review("mug", 1), review("mug", 1)];
        let error = kept.add(upload, 2).unwrap_err();
        assert_eq!(error.code(), tonic::Code::ResourceExhausted);
        assert_eq!(kept.by_product.len(), 1);
        assert_eq!(kept.by_product["mug"], [review("mug", 5)]);
    }

    #[test]
    fn ratings_outside_one_to_five_are_refused() {
        assert_eq!(
            [0, 1, 5, 6].map(|rating| is_publishable(&review("mug", rating)).is_ok()),
            [false, true, true, false]
        );
    }
}
