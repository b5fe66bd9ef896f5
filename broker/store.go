package broker

import (
	"context"
	"errors"
	"time"
)

// Store is a [Broker] that keeps messages until they are finished: what at_least_once needs. Callers
// get it from a Broker with a type assertion; a broker that is no Store serves at_most_once only.
//
// # Mailboxes
//
// A mailbox holds the unfinished messages of one channel and destination, in the order of
// their sequence numbers. Its owner is the one that attached last. Each Attach raises
// the mailbox's fence, and what an earlier owner asks for is refused with [ErrFenced]
// from then on, so at most one owner can finish messages (I4).
//
// A message leaves its mailbox only by finishing (I2): the owner settles it, its deadline
// passes, it is cancelled. Deadlines are seen to by the store itself, whether or not there
// is an owner, within a second or two; an owner should do it sooner.
//
// # Notices
//
// The store tells owners and waiting publishers of news, on whichever node they are, and hands owners
// what was stored for them. These notices are hints: one may be lost or come late, twice or for nothing,
// and not in order. So a store also looks at all attached mailboxes every few seconds (at very many of
// them in turn) and rings for those that have news.
//
// # Time
//
// Deadlines are compared with the store's clock, see Now.
//
// # Errors
//
// A method that could not reach the store returns an error that wraps [ErrUnavailable]. It may
// or may not have taken effect, unless the error wraps [ErrRefused] too. All methods but
// Append and Cancel may be repeated without harm; Append may with the same MID, Cancel
// may answer that it is too late when the first attempt did it.
type Store interface {
	Broker

	// SetPolicies replaces the policies of all channels. A channel that has none has the
	// zero Policy. It does no I/O and may be called at any time.
	SetPolicies(map[string]Policy)

	// Append stores m at the end of its mailbox and returns once it is held at the
	// durability that the answer names (I1). m.MID comes from [NewMessageID], for the same
	// channel, destination and key. m belongs to the store for ever.
	//
	// A key that was used within the policy's Dedupe gives the first message again:
	// Stored.Duplicate is true and nothing is stored (I6). Marking the key and storing the
	// message is one step. So is repeating an Append with its MID, which isn't
	// called a duplicate.
	//
	// Errors: [ErrConflict], [ErrMailboxFull], [ErrChannelFull], [ErrRecordsFull],
	// [ErrDeadLettersFull], [ErrExpired], [ErrUnproven] (Stored is valid: the message is
	// stored), or those of all methods.
	Append(ctx context.Context, m *Message, o AppendOptions) (Stored, error)

	// Attach makes owner the owner of a mailbox, whether or not there is anything in it, and
	// returns the first unfinished entries, as many as o.Limit and o.Bytes allow (at
	// least one, if there is one). The owner before, if there is one, hears Lost. Everything
	// that is stored from then on is in a later page, and offered or rung for.
	//
	// When o.Mode is not Takeover and the mailbox has a live owner, Attach returns [ErrHeld] and changes nothing. In
	// mode Standby the new owner then waits in line, behind those that came before, until it has attached or left:
	// it hears Ring when it is, or may be, its turn, and attaches again, in the same mode. [ErrLineFull]: as many
	// wait as can.
	//
	// If the owner before didn't detach (its node crashed), the first entries, as many
	// as its window held, count one attempt more, and the first of them one death: they
	// may have been pushed.
	Attach(ctx context.Context, channel, id string, owner Owner, o AttachOptions) (Mailbox, Page, error)

	// Leave takes an owner out of the line of those that wait for a mailbox. If it isn't in it, nothing happens. On
	// ErrUnavailable it is out as far as this process is concerned.
	Leave(ctx context.Context, channel, id string, owner Owner) error

	// Lookup returns what is known of a message. [ErrNotFound] if that is nothing: it never was,
	// or was finished longer ago than receipts are kept.
	Lookup(ctx context.Context, mid string) (Record, error)

	// Find returns the records of the messages of a channel that have this Ref, newest first,
	// at most limit. None is no error.
	Find(ctx context.Context, channel, ref string, limit int) ([]Record, error)

	// Content returns an unfinished message or dead letter with its body. [ErrNotFound] for
	// others: their bodies are not kept.
	Content(ctx context.Context, mid string) (*Message, error)

	// Await waits until the message is finished and returns its record. When ctx ends first it
	// reads the record once more and returns that, unfinished, without an error. To hear at
	// once, Append must have been told Wait; without, it takes up to a second.
	Await(ctx context.Context, mid string) (Record, error)

	// Cancel finishes a message that was never pushed as [StateCancelled]. If its mailbox has
	// an owner, the owner decides; see [Owner].
	Cancel(ctx context.Context, mid string) (Cancelled, error)

	// DeadLetters returns a page of a channel's dead letters, oldest first, without bodies.
	DeadLetters(ctx context.Context, channel string, q DeadQuery) (DeadPage, error)

	// Resend takes a dead letter out and stores its message again at the end of its mailbox,
	// under its own MID, with fresh counts and a new retention; ttl, if not zero, is its new
	// deadline, and otherwise it has none. Both are one step. [ErrNotFound] if there is no such dead
	// letter; limits apply as they do to Append.
	Resend(ctx context.Context, mid string, ttl time.Duration) (Stored, error)

	// Drop removes a dead letter for good. Its record says [StateErased] from then on.
	Drop(ctx context.Context, mid string) error

	// Online says who has a mailbox. [ErrNotFound] if nobody has.
	Online(ctx context.Context, channel, id string) (Presence, error)

	// Presence returns a page of those who have mailboxes of a channel, in no order. Those that come or go meanwhile may be
	// missing or there twice; all others are there once over all pages.
	Presence(ctx context.Context, channel string, q PresenceQuery) (PresencePage, error)

	// Usage says what is kept for each channel that anything is kept for, whether or not it has a
	// policy. Counts of a large store may be a few seconds old.
	Usage(ctx context.Context) (map[string]Usage, error)

	// Endings says how messages were finished by this process since it opened the store, its
	// part of the sweeping included. It does no I/O.
	Endings() map[Ending]uint64

	// Ready returns nil if the store can take messages at the durability that each of the
	// policies demands, or says why not. It does no I/O, so it can be a moment old.
	Ready() error

	// Now is the store's clock. It does no I/O, so it can be off by a few milliseconds, and
	// by seconds while the store cannot be reached. It never goes back.
	Now() time.Time
}

// Policy is what a channel's configuration says about storing. A zero duration or limit
// takes the default in parentheses.
type Policy struct {
	// Retention is how long a message waits for its destination before it becomes a dead
	// letter with the reason [DeadRetention] (72 h). A change applies to messages
	// that are appended after it.
	Retention time.Duration

	// Dedupe is how long a key is remembered, from the append (96 h). It is never shorter than
	// the message is unfinished.
	Dedupe time.Duration

	// Receipts is how long the record of a finished message is kept, from its end (24 h).
	Receipts time.Duration

	// DeadRetention is how long a dead letter is kept before it is dropped (30 days).
	DeadRetention time.Duration

	// MaxPending and MaxPendingBytes bound one mailbox, exactly (10000, 64 MiB). Bytes are
	// those of bodies.
	MaxPending      int
	MaxPendingBytes int64

	// MaxChannelPending and MaxChannelBytes bound the unfinished messages of a channel; a
	// store with partitions may exceed them a little (1000000, 4 GiB).
	MaxChannelPending int
	MaxChannelBytes   int64

	// MaxRecords bounds the records of a channel, finished or not (10000000).
	MaxRecords int

	// MaxDead bounds a channel's dead letters; at the bound, appends are refused (10000).
	MaxDead int

	// Durability is what an append must have proven. Empty: whatever the store gives.
	Durability Durability

	// AllowVolatile admits a store that forgets on a restart or evicts under pressure.
	AllowVolatile bool
}

// WithDefaults returns p with the defaults filled in.
func (p Policy) WithDefaults() Policy {
	orDefault(&p.Retention, 72*time.Hour)
	orDefault(&p.Dedupe, 96*time.Hour)
	orDefault(&p.Receipts, 24*time.Hour)
	orDefault(&p.DeadRetention, 30*24*time.Hour)
	orDefault(&p.MaxPending, 10_000)
	orDefault(&p.MaxPendingBytes, 64<<20)
	orDefault(&p.MaxChannelPending, 1_000_000)
	orDefault(&p.MaxChannelBytes, 4<<30)
	orDefault(&p.MaxRecords, 10_000_000)
	orDefault(&p.MaxDead, 10_000)
	return p
}

func orDefault[T int | int64 | time.Duration](v *T, otherwise T) {
	if *v <= 0 {
		*v = otherwise
	}
}

// AppendOptions say how to store a message.
type AppendOptions struct {
	// Key makes the append idempotent. Its scope is the channel and the destination. Empty: none.
	Key string

	// Fingerprint is compared with that of the first append with this key: if both are not
	// empty and differ, the append is an [ErrConflict]. At most 32 bytes.
	Fingerprint []byte

	// Expires is the message's deadline (I7). TTL, if it is not zero, is the same, counted from
	// the moment of storing. Neither: none.
	Expires time.Time
	TTL     time.Duration

	// Wait says that this node is going to Await the message, so that it is told of the end.
	Wait bool
}

// Stored is the answer to an append.
type Stored struct {
	// MID is that of the message, or of the first one that had the key.
	MID string

	// State is [StateStored], or what became of the first one.
	State State

	// Durability is what was proven, for a duplicate too.
	Durability Durability

	// Duplicate says that nothing was stored: the key was used before.
	Duplicate bool
}

// AttachMode says what happens if a mailbox has an owner already.
type AttachMode uint8

// The modes. An owner is alive until it detaches, until its process ends or, if that came without a word, until a
// while later: with Redis, one lease.
const (
	Takeover AttachMode = iota // it is displaced
	Reject                     // whoever comes later is told [ErrHeld]
	Standby                    // so it is, and waits in line
)

// MaxStandby bounds those that wait in line for a mailbox.
const MaxStandby = 16

// AttachOptions say how an owner takes a mailbox.
type AttachOptions struct {
	// Mode says what happens if there is an owner already.
	Mode AttachMode

	// Window is how many messages the owner may have in flight. Default 1.
	Window int

	// Address is the owner's peer, for [Presence]. At most 128 bytes of it are kept.
	Address string

	// Limit and Bytes bound the first page. Defaults Window and 1 MiB.
	Limit, Bytes int
}

// Owner is told of what happens to the mailbox that it is attached to. Its methods are called on
// the store's goroutines, perhaps several at once and before Attach has returned. They must
// not block, and must not call the store.
type Owner interface {
	// Ring tells that the mailbox may have entries behind those that the owner has read, or that
	// its lease holds again; or, if the owner waits in line, that it may be its turn.
	Ring()

	// Offer hands over an entry that was stored for the mailbox, right behind the one with the
	// sequence prev or, if that is finished, behind whatever was before it. An owner that has read on
	// to prev (see Page.Through) need not read e any more: it has then read on to e.Seq. Any
	// other owner takes it for a ring; so it does when it has no place for e.
	Offer(prev uint64, e Entry)

	// Lost tells that the mailbox has another owner, that the store has forgotten this one, or
	// that it was closed ([ErrFenced], [ErrForgotten], [ErrClosed]). It comes at most once, and not
	// after Detach has returned.
	Lost(err error)

	// Withdraw asks the owner to forget an entry, which is being cancelled. It returns
	// whether it did: false if the message was pushed, in whole or in part, or is
	// being settled. An owner that never read the entry returns true. After true it
	// must not push it, even if a Read returns it a last time.
	Withdraw(seq uint64, mid string) bool

	// Attempts returns how often the message was pushed, as far as this owner knows, and
	// whether it is in flight now.
	Attempts(seq uint64, mid string) (attempts int, inFlight bool)
}

// Mailbox is an owner's hold on a mailbox. It is safe for concurrent use.
type Mailbox interface {
	// Fence is this owner's number: higher than that of every owner before.
	Fence() uint64

	// Read returns the unfinished entries whose sequence is above after, oldest first, at most
	// limit, and at most so many bytes of bodies (but at least one entry, if there is one).
	Read(ctx context.Context, after uint64, limit, bytes int) (Page, error)

	// Leased reports whether the store has been in touch recently enough for this owner to be sure
	// that no other one has long been writing. While it is false, no write of a message
	// may begin (I4). The owner is rung for when it is true again. It does no I/O.
	Leased() bool

	// Settle finishes entries, or notes their counts. The results are in the order of the
	// outcomes. All of it is one step; an entry that was finished already does not keep the others
	// from being settled.
	Settle(ctx context.Context, outcomes []Outcome) ([]Verdict, error)

	// Detach gives the mailbox up, after noting the counts of entries that stay (their State
	// must be [StateStored]). Whoever attaches next starts at once. On ErrUnavailable the
	// owner is no longer one as far as this process is concerned.
	Detach(ctx context.Context, counts []Outcome) error
}

// Page is what was read of a mailbox at one moment.
type Page struct {
	// Entries are unfinished messages, oldest first.
	Entries []Entry

	// Through is how far the owner has read on: every message of the mailbox that had a sequence up to
	// it is in this page, was in front of it, or is finished.
	Through uint64

	// More says that there may be entries behind Through.
	More bool
}

// Entry is an unfinished message in its mailbox.
type Entry struct {
	Message *Message

	// Seq is its place in the mailbox. It says nothing else: identity is the MID.
	Seq uint64

	// Expires is the message's deadline, zero if there is none. Retain is when it becomes a
	// dead letter.
	Expires, Retain time.Time

	Counts
}

// Counts is what was tried with a message.
type Counts struct {
	// Attempts counts pushes, and what may have been one.
	Attempts int

	// Failures counts nacks and ack timeouts.
	Failures int

	// Deaths counts how often the socket ended while the message was the first in flight.
	Deaths int

	// NotBefore is when it may be pushed again. Zero: now.
	NotBefore time.Time
}

// Outcome is what an owner settles of one entry.
type Outcome struct {
	Seq uint64
	MID string

	// State is [StateAcked], [StateWritten], [StateExpired] or [StateDead]; or
	// [StateStored] to note the counts of an entry that stays.
	State State

	// Reason is why a message is dead.
	Reason DeadReason

	// Detail is what the client said of it, at most 256 bytes.
	Detail string

	// Reply is the client's answer, JSON of at most [MaxReply] bytes; nil if there is none.
	Reply []byte

	// Counts are the new ones, in full.
	Counts
}

// Verdict is what became of one outcome.
type Verdict uint8

// The verdicts.
const (
	Settled Verdict = iota // it is so now
	Gone                   // the message was finished before, some other way
)

// Record is what is known of a message: its receipt.
type Record struct {
	MID, Channel, ID, Ref string

	State  State
	Reason DeadReason // why it is dead
	Detail string     // what the client said of it

	// Attempts counts pushes. For a message that is in flight, the owner was asked.
	Attempts int

	// Stored and Finished are times by the store's clock; Finished is zero before the end.
	// Expires is the deadline, zero if there is none.
	Stored, Finished, Expires time.Time

	// Node names the node that holds the mailbox, or that finished the message. Empty: none.
	Node string

	// Reply is the back end's answer, JSON; nil if there is none.
	Reply []byte
}

// Cancelled is the answer to a cancel.
type Cancelled uint8

// The answers to a cancel.
const (
	CancelUnknown Cancelled = iota // the owner did not answer in time, or crashed: look again later
	CancelDone                     // no back end ever saw the message
	CancelTooLate                  // it was pushed, or is finished
)

// DeadQuery selects dead letters. Zero fields select all.
type DeadQuery struct {
	ID     string
	Reason DeadReason
	Before time.Time // died before

	// After is the Next of the page before. Limit is the page's size, default 100, at most 1000.
	After string
	Limit int
}

// DeadLetter is a message that is not tried again unless an operator says so.
type DeadLetter struct {
	Record
	ContentType string
	Size        int // of the body
}

// DeadPage is some dead letters. Next is empty at the end.
type DeadPage struct {
	Letters []DeadLetter
	Next    string
}

// Usage is what is kept of a channel.
type Usage struct {
	Mailboxes int       // that hold anything
	Pending   int       // unfinished messages
	Bytes     int64     // of their bodies
	Records   int       // finished or not
	Dead      int       // dead letters
	Oldest    time.Time // when the oldest unfinished message was stored, roughly; zero if there is none
}

// Ending is one way in which messages of a channel were finished.
type Ending struct {
	Channel string
	State   State
	Reason  DeadReason // of [StateDead]
}

// MaxReply is the largest reply that a record keeps.
const MaxReply = 1 << 10

// Errors of a [Store], wrapped with what happened. Test with errors.Is.
var (
	// ErrConflict: the key was used for another content.
	ErrConflict = errors.New("the key was used for another message")

	// ErrMailboxFull: as many messages, or bytes, as the policy allows wait for this destination.
	ErrMailboxFull = errors.New("mailbox full")

	// ErrChannelFull: the same for the channel.
	ErrChannelFull = errors.New("channel full")

	// ErrRecordsFull: as many records are kept as the policy allows.
	ErrRecordsFull = errors.New("too many records")

	// ErrDeadLettersFull: as many dead letters are kept as the policy allows.
	ErrDeadLettersFull = errors.New("too many dead letters")

	// ErrExpired: the deadline had passed before the message was stored.
	ErrExpired = errors.New("the deadline has passed")

	// ErrUnproven: the message is stored, but the durability that the policy demands could not
	// be proven in time.
	ErrUnproven = errors.New("stored, but its durability is not proven")

	// ErrFenced: another owner has attached.
	ErrFenced = errors.New("the mailbox has another owner")

	// ErrHeld: the mailbox has a live owner, or others are in front in the line.
	ErrHeld = errors.New("the mailbox has an owner already")

	// ErrLineFull: too many wait for the mailbox already.
	ErrLineFull = errors.New("too many wait for the mailbox already")

	// ErrForgotten: the store has lost what it knew of this owner, and has no later one: it was
	// emptied, or a replica was promoted that had not heard of the owner; or a later owner has come
	// and gone. Attaching again mends it.
	ErrForgotten = errors.New("the store has forgotten the owner of the mailbox")

	// ErrNotFound: nothing is known of the message.
	ErrNotFound = errors.New("no such message")

	// ErrFormat: the store was written by something that this version cannot read. The
	// text says by what, and what to do.
	ErrFormat = errors.New("store format")
)
