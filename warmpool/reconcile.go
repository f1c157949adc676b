// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

// ErrQuarantined means that a machine is kept for somebody to look at, and given to
// nobody until then.
var ErrQuarantined = errors.New("machine is in quarantine")

// Claim is a machine that a pod's record speaks of.
type Claim struct {
	// Request by which it was asked for. Of an unclear one only MachineID and PodUID count.
	Request
	// Unclear is why the pod's record cannot be read; empty when it can. Its machine may be
	// this one.
	Unclear string
}

// Survey is what the caller of Reconcile knows.
type Survey struct {
	// Claims of all pods that there are records of.
	Claims []Claim
	// Prefixes of the ids that the caller gives to machines. Others that no record speaks of
	// are somebody else's. Those of entries of pools are known here.
	Prefixes []string
}

// Finding is a machine that nobody of this process has, and what is to become of it.
type Finding struct {
	Machine string
	Verdict Verdict
	// Reason for people.
	Reason string
	// Request by which a pod asked for it, as far as is known.
	Request string
	// New: it was not quarantined before.
	New bool
}

// Reconcile looks at all machines and records of which nobody of this process has the
// machine, decides about each (see Verdict), and charges all of them to the ledger: a
// machine takes its room whatever becomes of it. It quarantines, and takes out of
// quarantine what has ended since; it deletes nothing. Findings are sorted by machine;
// those to keep are not among them.
//
// At the start of a node, before any other call but Start, what it finds to clean up may
// be given to Discard at once. Later it is to be found twice before, some time apart: it
// may just have changed hands.
//
// An error means that the driver did not tell what there is, and nothing has changed.
func (s *Supply) Reconcile(ctx context.Context, survey Survey) ([]Finding, error) {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	r := reconciliation{supply: s, survey: survey, claims: make(map[string]Claim), cases: make(map[string]*inquest)}
	for _, c := range survey.Claims {
		r.claims[c.MachineID] = c
	}
	if err := r.collect(ctx); err != nil {
		return nil, err
	}
	r.inspect(ctx)
	return r.conclude(), nil
}

// reconciliation is one pass.
type reconciliation struct {
	supply *Supply
	survey Survey
	claims map[string]Claim    // by the id of the request
	cases  map[string]*inquest // by machine
}

// inquest is what one pass finds out about one machine.
type inquest struct {
	evidence
	request string // by which it was asked for, as far as is known
	budget  Budget
	podUID  string
}

// collect gathers what is known without asking any machine.
func (r *reconciliation) collect(ctx context.Context) error {
	s := r.supply
	// The ledger before and after the driver: a machine is in the ledger for longer than
	// the driver has it.
	before := s.ledger.Account().Machines
	lctx, cancel := context.WithTimeout(ctx, s.opts.DialTimeout)
	defer cancel()
	ids, err := s.opts.Driver.List(lctx)
	if err != nil {
		return fmt.Errorf("list machines: %w", err)
	}
	builders := s.opts.Store.Builders()
	unwanted := s.opts.QuarantineDir.requests()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		r.add(id).listed = true
	}
	for id := range s.pending { // also of machines that do not exist
		r.add(id)
	}
	for id, c := range r.cases {
		c.owned = s.pending[id] == nil && (s.ledger.Has(id) || slices.ContainsFunc(before, func(e Entry) bool { return e.Machine == id })) || slices.Contains(builders, id)
		c.charged, c.unwanted = s.pending[id] != nil, slices.Contains(unwanted, id)
	}
	return nil
}

// add begins the inquest about a machine. With the supply's mu held.
func (r *reconciliation) add(id string) *inquest {
	if c := r.cases[id]; c != nil {
		return c
	}
	s := r.supply
	c := &inquest{request: id}
	r.cases[id] = c
	c.entry = isWarmID(id)
	c.ours = c.entry || slices.ContainsFunc(r.survey.Prefixes, func(p string) bool { return strings.HasPrefix(id, p) })
	rec, read := s.records[id]
	bad, unreadable := s.broken[id]
	switch {
	case read:
		c.paper, c.request, c.podUID, c.budget = paperRead, rec.Request, rec.PodUID, rec.Active
	case unreadable:
		c.paper, c.why, c.budget = paperBroken, bad.err.Error(), bad.guess.Active.atLeast(bad.guess.Warm)
		c.request = cmp.Or(bad.guess.Request, id)
	}
	if proven, known := s.opts.Store.Origin(id); proven {
		c.origin = originProven
	} else if known {
		c.origin = originUnproven
	}
	claim, found := r.claims[c.request]
	switch {
	case !found:
	case claim.Unclear != "":
		c.claim, c.podUID = claimUnclear, claim.PodUID
		if c.why == "" {
			c.why = claim.Unclear
		}
	case c.paper == paperRead && c.podUID != "" && claim.PodUID != "" && c.podUID != claim.PodUID:
		c.claim, c.why = claimOther, fmt.Sprintf("it says pod %s, the pod that asked for it is %s", c.podUID, claim.PodUID)
	default:
		c.claim, c.podUID, c.budget = claimKnown, claim.PodUID, claim.budget()
	}
	return c
}

// inspect asks those whose state matters, a few at a time.
func (r *reconciliation) inspect(ctx context.Context) {
	var wg sync.WaitGroup
	turns := make(chan struct{}, inspections)
	for id, c := range r.cases {
		if c.owned || !c.listed || !c.ours && c.paper == paperNone && c.claim == claimNone {
			continue
		}
		// What is kept in any case is asked for its size only, and a pod's, which is asked
		// when it is adopted, is looked up: it may be one that nobody can adopt.
		ask := c.undecided() || c.budget == (Budget{})
		if !ask && c.claim != claimKnown {
			continue
		}
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			r.supply.inspect(ctx, id, c, ask)
		})
	}
	wg.Wait()
}

// inspections is how many machines are asked at once: one that does not answer keeps its
// turn for the dial timeout.
const inspections = 16

// inspect looks a machine up, and asks it for its state.
func (s *Supply) inspect(ctx context.Context, id string, c *inquest, ask bool) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.DialTimeout)
	defer cancel()
	m, err := s.opts.Driver.Load(ctx, id)
	if u, ok := m.(vm.Unreadable); ok {
		ask, err, c.unreadable = true, u.Unreadable(), true
	}
	if errors.Is(err, vm.ErrNotFound) {
		c.listed = false // it has gone meanwhile, and is not to be charged for
		return
	}
	if !ask {
		return
	}
	c.asked = true
	if err == nil {
		c.state, err = m.State(ctx)
	}
	if errors.Is(err, vm.ErrNotFound) {
		c.asked, c.listed = false, false // it has gone meanwhile
		return
	}
	c.failed = err
	if d, ok := m.(vm.Describer); ok {
		cfg := d.Config()
		b := BudgetOf(cfg.Shape)
		if cfg.GuestOS == vm.GuestMacOS {
			b.Slots = 1
		}
		if b.validate() == nil {
			c.budget = c.budget.atLeast(b)
		}
	}
}

// conclude decides, charges, and quarantines.
func (r *reconciliation) conclude() []Finding {
	s := r.supply
	var findings []Finding
	var told []Quarantined
	s.mu.Lock()
	changed := false // other machines are in quarantine than were
	lost := false    // some machine that is kept may be anybody's
	for id, c := range r.cases {
		verdict, why := c.judge()
		if verdict == VerdictKeep {
			continue
		}
		room := s.pending[id]
		if room == nil && c.listed && !s.ledger.Has(id) {
			var err error
			if room, err = s.ledger.admitExisting(Entry{Machine: id, PodUID: c.podUID, Budget: c.budget}, StateProbing); err == nil {
				s.pending[id] = room
			}
		}
		if room == nil && c.listed {
			continue // somebody has taken it meanwhile
		}
		if room != nil {
			room.charge(c.budget)
		}
		if verdict == VerdictQuarantine || verdict == VerdictRetry {
			lost = lost || c.paper == paperBroken && c.request == id && c.entry
		}
		f := Finding{Machine: id, Verdict: verdict, Reason: why, Request: c.request}
		q, was := s.quarantined[id]
		switch {
		case verdict == VerdictQuarantine:
			f.New = !was
			changed = changed || !was
			if !was {
				q = Quarantined{Machine: id, Since: s.ledger.now().UTC()}
				_ = room.advance(StateQuarantined)
			}
			q.Reason, q.PodUID, q.Request, q.Budget = why, c.podUID, c.request, c.budget
			s.quarantined[id], s.unreadable[id] = q, c.unreadable
			told = append(told, q)
		case was && (verdict == VerdictRetry || c.unwanted): // it may live yet, or is about to be removed
			told = append(told, q)
		default:
			changed = changed || was
			delete(s.quarantined, id)
			delete(s.unreadable, id)
		}
		findings = append(findings, f)
	}
	r.mark(lost)
	s.mu.Unlock()
	if changed {
		signal(s.changes)
	}
	if err := s.opts.QuarantineDir.publish(told); err != nil {
		s.opts.Logger.Error("Cannot write down which machines are in quarantine", "error", err)
	}
	slices.SortFunc(findings, func(a, b Finding) int { return cmp.Compare(a.Machine, b.Machine) })
	return findings
}

// mark notes which requests may have a machine that is kept and whose record cannot be read:
// the one that it seems to speak of, while the machine could not be asked, and, when lost, those
// of which nothing else is left, since some such record does not say whose its machine is. Their
// pods must not be given another machine while it runs. With the supply's mu held.
func (r *reconciliation) mark(lost bool) {
	s := r.supply
	clear(s.unsure)
	for id, claim := range r.claims {
		machine := cmp.Or(s.aliases[id], id)
		c := r.cases[machine]
		there := c != nil && c.listed
		switch {
		case claim.Unclear != "":
		case there && c.paper == paperBroken && c.failed != nil,
			lost && claim.Template != nil && !there && !s.ledger.Has(machine):
			s.unsure[id] = true
		}
	}
}

// quarantineOf tells why the machine of a request, or of this id, must not be used; nil
// when nothing is known against it. With mu held.
func (s *Supply) quarantineOf(request, machine string) error {
	if q, ok := s.quarantined[machine]; ok {
		return fmt.Errorf("%w: %s", ErrQuarantined, q.explain())
	}
	if s.unsure[request] {
		return fmt.Errorf("%w: it may be one of those whose record cannot be read, see vk-firkin quarantine list", ErrQuarantined)
	}
	return nil
}

// readAgain takes a pod's machine out of quarantine whose own record can be read again: its
// pod need not wait for the next look.
func (s *Supply) readAgain(ctx context.Context, id string) {
	s.mu.Lock()
	if machine := s.aliases[id]; machine != "" {
		id = machine
	}
	kept := s.unreadable[id]
	s.mu.Unlock()
	if !kept {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.DialTimeout)
	defer cancel()
	m, err := s.opts.Driver.Load(ctx, id)
	if _, still := m.(vm.Unreadable); still || err != nil {
		return
	}
	s.mu.Lock()
	delete(s.quarantined, id)
	delete(s.unreadable, id)
	s.mu.Unlock()
	if err := s.opts.QuarantineDir.forget(id); err != nil {
		s.opts.Logger.Error("Cannot write down that a machine is not in quarantine any more", "machine", id, "error", err)
	}
}

// charge raises what a machine costs to at least this.
func (r *reservation) charge(b Budget) {
	l := r.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	b = b.atLeast(r.entry.Budget)
	if r.gone || b == r.entry.Budget || b.validate() != nil {
		return
	}
	sum := l.sum(r)
	*sum = sum.minus(r.entry.Budget).plus(b)
	r.entry.Budget = b
	l.changed()
}

// Quarantined are the machines in quarantine, sorted.
func (s *Supply) Quarantined() []Quarantined {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Quarantined, 0, len(s.quarantined))
	for _, q := range s.quarantined {
		list = append(list, q)
	}
	slices.SortFunc(list, func(a, b Quarantined) int { return cmp.Compare(a.Machine, b.Machine) })
	return list
}

// recallBroken counts the machines whose records cannot be used: they may run. Reconcile
// finds out. None of them keeps the node from starting.
func (s *Supply) recallBroken(bad []broken) {
	for _, b := range bad {
		s.opts.Logger.Error("The record of a machine cannot be used", "machine", b.machine, "error", b.err)
		s.broken[b.machine] = b
		room, err := s.ledger.admitExisting(Entry{Machine: b.machine, Budget: b.guess.Active.atLeast(b.guess.Warm)}, StateProbing)
		if err != nil { // its id is taken; Reconcile asks the machine itself
			s.opts.Logger.Error("A machine whose record cannot be used is not counted before it was asked", "machine", b.machine, "error", err)
			continue
		}
		s.pending[b.machine] = room
		if r := b.guess.Request; r != "" && r != b.machine && s.aliases[r] == "" && s.ledger.claim(r) == nil {
			s.aliases[r] = b.machine
		}
	}
}

// Quarantined is a machine in quarantine.
type Quarantined struct {
	Machine string    `json:"machine"`
	Since   time.Time `json:"since"`
	Reason  string    `json:"reason"`
	// PodUID and Request of the pod that it may be of, as far as is known.
	PodUID  string `json:"podUID,omitempty"`
	Request string `json:"request,omitempty"`
	// Budget is what it is charged with.
	Budget Budget `json:"budget"`
}

func (q Quarantined) explain() string {
	return fmt.Sprintf("%s. It is kept and takes its room until it ends or is removed by: vk-firkin quarantine remove %s", q.Reason, q.Machine)
}
