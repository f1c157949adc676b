// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"cmp"
	"fmt"
	"slices"
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
	StateActive    State = "active"
	StateStopping  State = "stopping"
)

// order of the states: they only move forward.
var order = [...]State{StateReserved, StateRestoring, StateProbing, StateActive, StateStopping}

// Entry is one machine in the ledger.
type Entry struct {
	Machine string    `json:"machine"`
	PodUID  string    `json:"podUID,omitempty"`
	Budget  Budget    `json:"budget"`
	State   State     `json:"state"`
	Since   time.Time `json:"since"`
}

// Account is the ledger at one moment: Capacity = Active + Available, unless the
// capacity was lowered below what is active.
type Account struct {
	Capacity  Budget
	Active    Budget
	Available Budget
	// Machines, sorted by id.
	Machines []Entry
}

// Ledger accounts for every machine of a node. Safe for concurrent use; nothing in
// it does I/O or waits.
type Ledger struct {
	now func() time.Time

	mu       sync.Mutex
	capacity Budget                  // guarded by mu
	active   Budget                  // guarded by mu; sum of machines
	machines map[string]*reservation // guarded by mu
}

// NewLedger returns the empty ledger of a node with this capacity.
func NewLedger(capacity Budget) *Ledger {
	return &Ledger{now: time.Now, capacity: capacity, machines: make(map[string]*reservation)}
}

// reservation is the right to one machine's room. It is held by one owner, who
// releases it when the machine is known not to exist.
type reservation struct {
	ledger *Ledger
	entry  Entry // State and Since guarded by ledger.mu
	gone   bool  // guarded by ledger.mu
}

// reserve takes room for a machine that is to be made. The error is a *Refusal:
// Invalid, Exists, Oversized or InsufficientCapacity; nothing has changed then.
func (l *Ledger) reserve(machine, podUID string, b Budget) (*reservation, error) {
	if err := b.validate(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, taken := l.machines[machine]; taken {
		return nil, refuse(ReasonExists, nil, "machine %q is %s already", machine, e.entry.State)
	}
	if res, want, have, over := b.exceeds(l.capacity); over {
		return nil, shortage(ReasonOversized, res, want, have)
	}
	if res, want, have, over := b.exceeds(l.capacity.minus(l.active)); over {
		return nil, shortage(ReasonInsufficientCapacity, res, want, have)
	}
	return l.add(machine, podUID, b, StateReserved), nil
}

// admit takes room for a machine that exists already, whether there is room or not.
// The error is a *Refusal: Invalid or Exists.
func (l *Ledger) admit(machine, podUID string, b Budget, state State) (*reservation, error) {
	if err := b.validate(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, taken := l.machines[machine]; taken {
		return nil, refuse(ReasonExists, nil, "machine %q is %s already", machine, e.entry.State)
	}
	return l.add(machine, podUID, b, state), nil
}

func (l *Ledger) add(machine, podUID string, b Budget, state State) *reservation {
	r := &reservation{ledger: l, entry: Entry{Machine: machine, PodUID: podUID, Budget: b, State: state, Since: l.now()}}
	l.machines[machine] = r
	l.active = l.active.plus(b)
	return r
}

// advance moves the machine forward. A move back, or of a machine that is gone, is
// a mistake of the caller and changes nothing.
func (r *reservation) advance(to State) error {
	r.ledger.mu.Lock()
	defer r.ledger.mu.Unlock()
	if r.gone || slices.Index(order[:], to) < slices.Index(order[:], r.entry.State) {
		return fmt.Errorf("machine %q cannot go from %s to %s", r.entry.Machine, r.entry.State, to)
	}
	if r.entry.State != to {
		r.entry.State, r.entry.Since = to, r.ledger.now()
	}
	return nil
}

// release gives the room back. Only the first call does; it returns true.
func (r *reservation) release() bool {
	l := r.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.gone {
		return false
	}
	r.gone = true
	delete(l.machines, r.entry.Machine)
	l.active = l.active.minus(r.entry.Budget)
	return true
}

// SetCapacity changes what the node has. What runs stays.
func (l *Ledger) SetCapacity(capacity Budget) error {
	if err := capacity.validate(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.capacity = capacity
	return nil
}

// Has tells whether a machine is in the ledger.
func (l *Ledger) Has(machine string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.machines[machine]
	return ok
}

// Account returns the ledger at this moment. It is a copy.
func (l *Ledger) Account() Account {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := Account{
		Capacity:  l.capacity,
		Active:    l.active,
		Available: l.capacity.minus(l.active),
		Machines:  make([]Entry, 0, len(l.machines)),
	}
	for _, r := range l.machines {
		a.Machines = append(a.Machines, r.entry)
	}
	slices.SortFunc(a.Machines, func(x, y Entry) int { return cmp.Compare(x.Machine, y.Machine) })
	return a
}
