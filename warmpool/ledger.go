// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// Budget is what a machine costs the node, and what the node has. No field is
// negative.
type Budget struct {
	MilliCPU    int64 `json:"milliCPU"`
	MemoryBytes int64 `json:"memoryBytes"`
	DiskBytes   int64 `json:"diskBytes"`
	// Slots are macOS guests: Apple's licence allows two at a time on a host. Other
	// machines take none.
	Slots int64 `json:"slots,omitempty"`
}

// dimension is one field of a budget.
type dimension struct {
	resource string
	of       func(*Budget) *int64
}

// dimensions in the order in which a refusal names them.
var dimensions = [...]dimension{
	{"cpu", func(b *Budget) *int64 { return &b.MilliCPU }},
	{"memory", func(b *Budget) *int64 { return &b.MemoryBytes }},
	{"disk", func(b *Budget) *int64 { return &b.DiskBytes }},
	{"slots", func(b *Budget) *int64 { return &b.Slots }},
}

// maxAmount bounds each field of a budget (256 TiB of memory, in bytes), so that a
// sum over all machines that a host could ever hold cannot overflow.
const maxAmount = 1 << 48

func (b Budget) plus(o Budget) Budget {
	for _, d := range dimensions {
		*d.of(&b) += *d.of(&o)
	}
	return b
}

// minus subtracts, and stops at zero: a node that was made smaller than what runs
// on it has nothing available, not less than nothing.
func (b Budget) minus(o Budget) Budget {
	for _, d := range dimensions {
		x := d.of(&b)
		*x = max(0, *x-*d.of(&o))
	}
	return b
}

// atLeast is the greater of both in each field.
func (b Budget) atLeast(o Budget) Budget {
	for _, d := range dimensions {
		*d.of(&b) = max(*d.of(&b), *d.of(&o))
	}
	return b
}

// exceeds returns the first resource of which b has more than o.
func (b Budget) exceeds(o Budget) (resource string, requested, available int64, exceeds bool) {
	for _, d := range dimensions {
		if r, a := *d.of(&b), *d.of(&o); r > a {
			return d.resource, r, a, true
		}
	}
	return "", 0, 0, false
}

func (b Budget) validate() error {
	for _, d := range dimensions {
		if v := *d.of(&b); v < 0 || v > maxAmount {
			return refuse(ReasonInvalid, nil, "absurd amount of %s in the budget: %d", d.resource, v)
		}
	}
	return nil
}

// State is where a machine is on its way through the ledger.
type State string

// The states, in order. A machine that is gone is not in the ledger.
const (
	StateReserved  State = "reserved"
	StateRestoring State = "restoring"
	StateProbing   State = "probing"
	StateWarm      State = "warm"
	StateActive    State = "active"
	// StateQuarantined: kept for somebody to look at, see Verdict.
	StateQuarantined State = "quarantined"
	StateStopping    State = "stopping"
)

// order of the states: they only move forward.
var order = [...]State{StateReserved, StateRestoring, StateProbing, StateWarm, StateActive, StateQuarantined, StateStopping}

// Entry is one machine in the ledger.
type Entry struct {
	Machine string `json:"machine"`
	PodUID  string `json:"podUID,omitempty"`
	Budget  Budget `json:"budget"`
	State   State  `json:"state"`
	// Warm: it counts as warm, being on its way to a pool, in it, or ended without a pod.
	Warm bool `json:"warm,omitempty"`
	// Pool and Template ("namespace/name") of a warm entry, also once a pod has it.
	Pool     string    `json:"pool,omitempty"`
	Template string    `json:"template,omitempty"`
	Since    time.Time `json:"since"`
}

// IsBuild tells whether it is not a machine of the supply's, but the slot in which a snapshot
// is built.
func (e Entry) IsBuild() bool { return strings.HasPrefix(e.Machine, buildPrefix) }

// Account is the ledger at one moment: Capacity = Active + Warm + Available, unless
// the capacity was lowered below what there is.
type Account struct {
	Capacity  Budget
	Active    Budget
	Warm      Budget
	Available Budget
	// Withheld are slots that are not in Capacity because the host refused to fill them.
	Withheld Withheld
	// Machines, sorted by id. A snapshot that is being built with a slot of its own is among
	// them.
	Machines []Entry
}

// Ledger accounts for every machine of a node: those that pods have, and the entries
// of the pools. Safe for concurrent use; nothing in it does I/O or waits, but admit
// for its turn.
type Ledger struct {
	now func() time.Time
	// changed is told after every change, evicted of entries that are to be deleted. Both
	// are called with mu held: they neither block nor call back. An entry in flight has an
	// owner who deletes it; he is to be told to stop.
	changed func()
	evicted func(e *warmEntry, reason EvictReason, inFlight bool)

	mu       sync.Mutex
	capacity Budget                  // guarded by mu
	active   Budget                  // guarded by mu; sum of machines that are not warm
	warm     Budget                  // guarded by mu; sum of machines that are
	limit    slotLimit               // guarded by mu
	leaving  Budget                  // guarded by mu; part of warm: evicted, and soon deleted
	machines map[string]*reservation // guarded by mu
	claims   map[string]bool         // guarded by mu; ids of requests, see claim
	shelves  shelves                 // guarded by mu; the pools
	queue    queue                   // guarded by mu; requests that wait for room
}

// NewLedger returns the empty ledger of a node with this capacity.
func NewLedger(capacity Budget) *Ledger {
	return &Ledger{
		now:      time.Now,
		changed:  func() {},
		evicted:  func(*warmEntry, EvictReason, bool) {},
		capacity: capacity,
		machines: make(map[string]*reservation),
		claims:   make(map[string]bool),
		shelves:  newShelves(),
		queue:    queue{most: defaultQueueLength},
	}
}

// reservation is the right to one machine's room. It is held by one owner, who
// releases it when the machine is known not to exist.
type reservation struct {
	ledger *Ledger
	entry  Entry // guarded by ledger.mu, Machine never changes
	// rest is what the entry costs in its pool, to which a promotion that failed goes back.
	rest    Budget // guarded by ledger.mu
	leaving bool   // guarded by ledger.mu; counted in ledger.leaving
	gone    bool   // guarded by ledger.mu
	// overLimit: the host refused to make the machine, which does not count among its guests.
	overLimit bool // guarded by ledger.mu
}

// claim takes the id of a request, under which its caller knows the machine whatever
// its own id. The error is a *Refusal: Exists.
func (l *Ledger) claim(id string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r := l.machines[id]; r != nil {
		return refuse(ReasonExists, nil, "machine %q is %s already", id, r.entry.State)
	}
	if l.claims[id] {
		return refuse(ReasonExists, nil, "machine %q exists, or is being made", id)
	}
	l.claims[id] = true
	return nil
}

func (l *Ledger) unclaim(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.claims, id)
}

// reserve takes room for a machine that is to be made, if it is free now and nobody
// waits for it. The error is a *Refusal: Invalid, Exists, Oversized or
// InsufficientCapacity; nothing has changed then.
func (l *Ledger) reserve(e Entry) (*reservation, error) {
	if err := e.Budget.validate(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reserveLocked(e)
}

func (l *Ledger) reserveLocked(e Entry) (*reservation, error) {
	if taken := l.machines[e.Machine]; taken != nil {
		return nil, refuse(ReasonExists, nil, "machine %q is %s already", e.Machine, taken.entry.State)
	}
	if res, want, have, over := e.Budget.exceeds(l.capacity); over {
		return nil, shortage(ReasonOversized, res, want, have)
	}
	if res, want, have, over := e.Budget.exceeds(l.available()); over {
		return nil, shortage(ReasonInsufficientCapacity, res, want, have)
	}
	return l.add(e, StateReserved), nil
}

// admitExisting takes room for a machine that exists already, whether there is room or not.
// The error is a *Refusal: Invalid or Exists.
func (l *Ledger) admitExisting(e Entry, state State) (*reservation, error) {
	if err := e.Budget.validate(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if taken := l.machines[e.Machine]; taken != nil {
		return nil, refuse(ReasonExists, nil, "machine %q is %s already", e.Machine, taken.entry.State)
	}
	return l.add(e, state), nil
}

func (l *Ledger) add(e Entry, state State) *reservation {
	e.State, e.Since = state, l.now()
	r := &reservation{ledger: l, entry: e, rest: e.Budget}
	l.machines[e.Machine] = r
	*l.sum(r) = l.sum(r).plus(e.Budget)
	if e.Pool != "" && !e.Warm {
		l.shelves.pool(e.Pool).active++
	}
	l.changed()
	return r
}

// sum is where a machine counts. With mu held.
func (l *Ledger) sum(r *reservation) *Budget {
	if r.entry.Warm {
		return &l.warm
	}
	return &l.active
}

// available is what is left. With mu held.
func (l *Ledger) available() Budget { return l.offered().minus(l.active.plus(l.warm)) }

// advance moves the machine forward. A move back, or of a machine that is gone, is
// a mistake of the caller and changes nothing.
func (r *reservation) advance(to State) error {
	r.ledger.mu.Lock()
	defer r.ledger.mu.Unlock()
	return r.advanceLocked(to)
}

func (r *reservation) advanceLocked(to State) error {
	if r.gone || slices.Index(order[:], to) < slices.Index(order[:], r.entry.State) {
		return fmt.Errorf("machine %q cannot go from %s to %s", r.entry.Machine, r.entry.State, to)
	}
	if r.entry.State != to {
		r.entry.State, r.entry.Since = to, r.ledger.now()
		if to == StateProbing {
			r.ledger.filled(r)
		}
		r.ledger.changed()
	}
	return nil
}

// promote makes a warm machine active: what it costs more than in its pool has to be
// free. It never costs less, whatever the pod's budget says: it is as large as it is. The error is a *Refusal: InsufficientCapacity; nothing has changed then. With
// mu held.
func (r *reservation) promote(podUID string, active Budget) error {
	l := r.ledger
	active = active.atLeast(r.entry.Budget)
	if res, want, have, over := active.minus(r.entry.Budget).exceeds(l.available()); over {
		return shortage(ReasonInsufficientCapacity, res, want, have)
	}
	if err := r.advanceLocked(StateActive); err != nil {
		return err
	}
	l.warm = l.warm.minus(r.entry.Budget)
	l.active = l.active.plus(active)
	r.entry.Warm, r.entry.Budget, r.entry.PodUID = false, active, podUID
	l.shelves.pool(r.entry.Pool).active++
	l.changed()
	return nil
}

// demote takes a promotion back: the machine could not be handed over and is to be
// deleted. Until then it costs again what it did in its pool.
func (r *reservation) demote() {
	l := r.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.gone || r.entry.Warm {
		return
	}
	l.active = l.active.minus(r.entry.Budget)
	l.warm = l.warm.plus(r.rest)
	r.entry.Warm, r.entry.Budget, r.entry.PodUID = true, r.rest, ""
	_ = r.advanceLocked(StateStopping)
	r.setLeaving(true)
	l.shelves.pool(r.entry.Pool).active--
	l.shelves.touch(r.entry.Pool, l.now())
	l.serve()
	l.changed()
}

// setLeaving counts the machine as one whose room is about to be free, or not any
// more. With mu held.
func (r *reservation) setLeaving(leaving bool) {
	if r.leaving == leaving {
		return
	}
	r.leaving = leaving
	if l := r.ledger; leaving {
		l.leaving = l.leaving.plus(r.entry.Budget)
	} else {
		l.leaving = l.leaving.minus(r.entry.Budget)
	}
}

// stuck says that the machine could not be deleted: its room is not to be counted on.
func (r *reservation) stuck() {
	r.ledger.mu.Lock()
	defer r.ledger.mu.Unlock()
	r.setLeaving(false)
	r.ledger.serve()
}

// release gives the room back. Only the first call does; it returns true.
func (r *reservation) release() bool {
	l := r.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.gone {
		return false
	}
	r.setLeaving(false)
	r.gone = true
	delete(l.machines, r.entry.Machine)
	*l.sum(r) = l.sum(r).minus(r.entry.Budget)
	if r.entry.Pool != "" && !r.entry.Warm {
		l.shelves.pool(r.entry.Pool).active--
		l.shelves.touch(r.entry.Pool, l.now())
	}
	l.serve()
	l.changed()
	return true
}

// SetCapacity changes what the node has. What there is stays. The error is a *Refusal:
// Invalid.
func (l *Ledger) SetCapacity(capacity Budget) error {
	if err := capacity.validate(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.capacity = capacity
	l.serve()
	l.changed()
	return nil
}

// Has tells whether a machine is in the ledger, or a request of this id.
func (l *Ledger) Has(machine string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.machines[machine] != nil || l.claims[machine]
}

// Account returns the ledger at this moment. It is a copy.
func (l *Ledger) Account() Account {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.account()
}

func (l *Ledger) account() Account {
	a := Account{
		Capacity:  l.offered(),
		Withheld:  l.withheld(),
		Active:    l.active,
		Warm:      l.warm,
		Available: l.available(),
		Machines:  make([]Entry, 0, len(l.machines)),
	}
	for _, r := range l.machines {
		a.Machines = append(a.Machines, r.entry)
	}
	slices.SortFunc(a.Machines, func(x, y Entry) int { return cmp.Compare(x.Machine, y.Machine) })
	return a
}
