//! What buyers think.

use std::collections::{HashMap, HashSet};

use outpost::{BoxError, Config, Snapshot, SnapshotReader, SnapshotWriter, State};
use serde::{Deserialize, Serialize};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    check,
    state::{self, Locked, v1 as written},
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
pub async fn new(
    config: Config<ReviewsConfig>,
    kept: State<Locked<Kept>>,
    catalog: CatalogHandle,
) -> Result<ReviewsServer<Reviews>, BoxError> {
    Ok(ReviewsServer::new(Reviews { config: config.into_inner(), kept, catalog }))
}

/// The module. It keeps at most `max_per_product` reviews of each product in the catalog, of about 2 kB each.
#[derive(Debug)]
pub struct Reviews {
    config: ReviewsConfig,
    kept: State<Locked<Kept>>,
    catalog: CatalogHandle,
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

/// All reviews, of each product the oldest first. They are only ever added, so that those which came since some time are
/// the last ones of each product.
#[derive(Debug, Default)]
pub struct Kept {
    by_product: HashMap<String, Vec<Review>>,
    /// How many there were of each product when changes began to be tracked.
    tracked: HashMap<String, usize>,
}

/// There may be many, so most of them are copied while the module serves.
impl Snapshot for Locked<Kept> {
    async fn snapshot(&self, out: &mut SnapshotWriter) -> Result<(), BoxError> {
        state::write(out, self.with(|kept| kept.since(&HashMap::new()))).await
    }

    async fn restore(&self, from: &mut SnapshotReader) -> Result<(), BoxError> {
        let all = state::read(from).await?;
        self.with(|kept| {
            *kept = Kept::default();
            kept.take(all);
        });
        Ok(())
    }

    fn track_changes(&self, track: bool) -> bool {
        self.with(|kept| {
            let counts = kept.by_product.iter().map(|(product_id, reviews)| (product_id.clone(), reviews.len()));
            kept.tracked = if track { counts.collect() } else { HashMap::new() };
        });
        true
    }

    async fn changes(&self, out: &mut SnapshotWriter) -> Result<(), BoxError> {
        state::write(out, self.with(|kept| kept.since(&kept.tracked))).await
    }

    async fn apply(&self, from: &mut SnapshotReader) -> Result<(), BoxError> {
        let changes = state::read(from).await?;
        self.with(|kept| kept.take(changes));
        Ok(())
    }
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
    /// What has been added since there were so many of each product.
    fn since(&self, counts: &HashMap<String, usize>) -> written::Reviews {
        let added = |(product_id, reviews): (&String, &Vec<Review>)| {
            let after = counts.get(product_id).copied().unwrap_or_default();
            let reviews = reviews.get(after..).filter(|added| !added.is_empty())?.to_vec();
            Some(written::ProductReviews { product_id: product_id.clone(), after: after as u64, reviews })
        };
        written::Reviews { products: self.by_product.iter().filter_map(added).collect() }
    }

    /// Adds those. Some may be there already: a copy was made later than what it is to be told.
    fn take(&mut self, added: written::Reviews) {
        for written::ProductReviews { product_id, after, reviews } in added.products {
            let of_product = self.by_product.entry(product_id).or_default();
            of_product.truncate(usize::try_from(after).unwrap_or(usize::MAX));
            of_product.extend(reviews);
        }
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
    #[tokio::test]
    async fn what_is_added_during_a_copy_comes_along_once() {
        let source = State::new(Locked::<Kept>::default());
        let add = |product_id: &str, rating: u32| {
            source.with(|kept| kept.add(vec![review(product_id, rating)], 10)).unwrap();
        };
        add("mug", 1);
        assert!(source.track_changes(true));
        add("mug", 2);
        add("tent", 3);
        let copied = State::save(&source).await.unwrap();
        add("mug", 4);
        let changes = State::save_changes(&source).await.unwrap();
        let target = State::new(Locked::<Kept>::default());
        State::load(&target, copied).await.unwrap();
        State::load_changes(&target, changes).await.unwrap();
        let all = source.with(|kept| kept.by_product.clone());
        assert_eq!(target.with(|kept| kept.by_product.clone()), all);
        assert_eq!((all["mug"].len(), all["tent"].len()), (3, 1));
    }
}
