use futures_util::FutureExt as _;
use tokio::sync::oneshot;

use super::*;
use crate::domain::NewOrder;
use crate::store::Written;

type Answered = oneshot::Receiver<Result<Written, Refusal>>;

fn job() -> (Job, Answered) {
    let order = NewOrder::from_json(br#"{"user_id": 1, "product_id": 2, "quantity": 3}"#).expect("an order");
    let (answer, answered) = oneshot::channel();
    (Job::new(order, None, None, answer), answered)
}

fn jobs(count: usize) -> Vec<Job> {
    (0..count).map(|_| job().0).collect()
}

/// One that came so long ago.
fn old(age: Duration) -> (Job, Answered) {
    let (mut job, answered) = job();
    job.since = Instant::now().checked_sub(age).expect("the machine has been up for so long");
    (job, answered)
}

fn queue(change: impl FnOnce(&mut Limits)) -> Queue {
    let mut limits = Limits { batch_rows_max: 10, statements_max: 2, queue_max: 100, ..Limits::default() };
    change(&mut limits);
    Queue::new(&limits, Gauge::default())
}

/// How many are taken without waiting for anything; nothing if that is none.
fn take(queue: &Queue, max: usize) -> Option<usize> {
    let mut jobs = Vec::new();
    queue.take(&mut jobs, max).now_or_never().map(|_| jobs.len())
}

#[test]
fn a_job_alone_is_taken_at_once() {
    let queue = queue(|_| ());
    assert_eq!(take(&queue, 10), None, "nobody is there");
    assert!(queue.push(jobs(1)).is_none());
    assert_eq!(take(&queue, 10), Some(1));
    assert_eq!(take(&queue, 10), None);
}

#[test]
fn as_many_are_taken_as_there_is_room_for_and_the_others_are_given_back() {
    let queue = queue(|limits| limits.queue_max = 3);
    let (refusal, refused) = queue.push(jobs(5)).expect("two too many");
    assert_eq!((refusal, refused.len()), (Refusal::QueueFull, 2));
    assert_eq!(queue.refusal(), Some(Refusal::QueueFull));
    assert_eq!(take(&queue, 2), Some(2));
    assert_eq!(queue.refusal(), None);
}

#[test]
fn orders_of_one_request_are_not_parted() {
    let queue = queue(|_| ());
    let request = |count| (0..count).map(|place| if place == 0 { job().0 } else { job().0.following() });
    for count in [7, 6, 2] {
        assert!(queue.push(request(count)).is_none());
    }
    assert_eq!(take(&queue, 10), Some(13), "the second request begins within the first ten");
    assert_eq!(take(&queue, 10), Some(2));
}

#[test]
fn nobody_is_put_behind_one_that_has_waited_too_long_and_that_one_is_refused() {
    let queue = queue(|limits| limits.queue_age_max_ms = 1_000);
    let (first, mut answered) = old(Duration::from_millis(1_500));
    let (second, _second_answered) = old(Duration::from_millis(500));
    assert!(queue.push([first, second]).is_none());
    assert_eq!(queue.refusal(), Some(Refusal::QueueOld));
    let (refusal, refused) = queue.push(jobs(1)).expect("it would wait too long");
    assert_eq!((refusal, refused.len()), (Refusal::QueueOld, 1));
    assert_eq!(take(&queue, 10), Some(1), "the one that is too old is not written");
    assert_eq!(answered.try_recv().expect("an answer"), Err(Refusal::QueueOld));
    assert_eq!(queue.refusal(), None);
}

#[test]
fn more_than_can_be_written_within_the_time_are_refused_when_they_come() {
    let queue = queue(|limits| limits.queue_age_max_ms = 400);
    assert!(queue.push(jobs(60)).is_none(), "nothing is known of the pace yet");
    // Two takes with 40 ms in between: 4 ms a job, so that 25 of them are a quarter of the greatest age.
    let start = Instant::now();
    let mut waiting = queue.waiting();
    waiting.pace.taken(start, 10, 60);
    waiting.pace.taken(start + Duration::from_millis(40), 10, 60);
    drop(waiting);
    assert_eq!(queue.refusal(), Some(Refusal::QueueSlow));
    let mut left = 60;
    while queue.refusal().is_some() {
        let mut waiting = queue.waiting();
        waiting.jobs.pop_front();
        left = waiting.jobs.len();
    }
    assert_eq!(left, 25);
}

#[test]
fn what_the_statements_hold_together_is_taken_however_slow_they_were() {
    let queue = queue(|limits| limits.queue_age_max_ms = 400);
    assert!(queue.push(jobs(19)).is_none());
    let start = Instant::now();
    queue.waiting().pace.taken(start, 10, 1);
    queue.waiting().pace.taken(start + Duration::from_secs(5), 10, 1);
    // Else a pace that was measured while Postgres stood still would never be measured again.
    assert!(queue.push(jobs(1)).is_none());
    assert_eq!(queue.refusal(), Some(Refusal::QueueSlow));
}

#[tokio::test]
async fn old_jobs_are_refused_though_no_writer_looks() {
    let queue = queue(|limits| limits.queue_age_max_ms = 50);
    let (job, answered) = job();
    assert!(queue.push([job]).is_none());
    tokio::select! {
        () = queue.sweep() => panic!("it ends only when the queue is closed"),
        answer = answered => assert_eq!(answer.expect("an answer"), Err(Refusal::QueueOld)),
    }
    assert_eq!(
        queue.refusal(),
        Some(Refusal::QueueOld),
        "until a writer comes back, the next one would fare no better"
    );
    assert_eq!(take(&queue, 10), None);
    assert_eq!(queue.refusal(), None);
    queue.close();
    queue.sweep().now_or_never().expect("it ends");
}

#[test]
fn what_is_queued_when_the_queue_is_closed_is_still_taken() {
    let queue = queue(|_| ());
    assert!(queue.push(jobs(12)).is_none());
    queue.close();
    assert!(queue.push(jobs(1)).is_some_and(|(refusal, _)| refusal == Refusal::ShuttingDown));
    let mut taken = Vec::new();
    assert_eq!(queue.take(&mut taken, 10).now_or_never(), Some(true));
    assert_eq!(queue.take(&mut taken, 10).now_or_never(), Some(true));
    assert_eq!(queue.take(&mut taken, 10).now_or_never(), Some(false));
    assert_eq!(taken.len(), 12);
}
