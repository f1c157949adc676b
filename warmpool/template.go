// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/recipe"
)

// templateName is a revision of a template.
type templateName struct{ namespace, name, revision string }

func (n templateName) id() string {
	if n.name == "" {
		return ""
	}
	return n.namespace + "/" + n.name
}

func nameOf(t Template) templateName { return templateName{t.Namespace, t.Name, t.Revision} }

// owner of a template's images.
func (n templateName) owner() string { return "template-" + n.id() + "@" + n.revision }

// templates are the snapshots of templates on this node: of those that are targeted,
// and of those that requests use.
type templates struct {
	supply *Supply

	mu     sync.Mutex
	states map[templateName]*templateState // guarded by mu
	closed bool                            // guarded by mu

	// slotWanted: the build of a macOS template waits for a slot. Only the supervisor has it.
	slotWanted bool
}

// templateState is one revision. All fields are guarded by templates.mu.
type templateState struct {
	template Template
	targeted bool
	users    int // calls under way
	status   TemplateStatus
	retry    backoff // of builds
	err      error   // of the last build, when it failed
	breaker  breaker // of restores
	// images are those that the snapshot is made with, once they are known.
	images []SlotImage
	// looked: whether the node has a snapshot was found out, and if not, its image pulled,
	// before a slot is taken for its build. Of macOS templates only.
	looked bool
	// pin keeps the snapshot of a targeted template from being collected.
	pin Snapshot
	// cancel ends the build in the background; nil when there is none.
	cancel context.CancelFunc
}

func newTemplates(s *Supply) *templates {
	return &templates{supply: s, states: make(map[templateName]*templateState)}
}

// state returns the state of a revision, new if it is not known. With mu held.
func (t *templates) state(tmpl Template) *templateState {
	name := nameOf(tmpl)
	st := t.states[name]
	if st == nil {
		st = &templateState{template: tmpl, status: TemplateStatus{
			Namespace: tmpl.Namespace, Name: tmpl.Name, Revision: tmpl.Revision, Phase: TemplatePending,
		}}
		t.states[name] = st
	}
	return st
}

// use keeps a state from being dropped until done.
func (t *templates) use(tmpl Template) (st *templateState, done func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	st = t.state(tmpl)
	st.users++
	return st, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		st.users--
		t.drop(st)
	}
}

// drop forgets a revision that nobody needs. With mu held.
func (t *templates) drop(st *templateState) {
	name := nameOf(st.template)
	if st.targeted || st.users > 0 || t.states[name] != st {
		return
	}
	if st.retry.waits(time.Now()) && !t.closed {
		return // it is known to fail; sync forgets it later
	}
	delete(t.states, name)
	if st.pin != nil {
		st.pin.Release()
		st.pin = nil
	}
	if images := t.supply.opts.Images; images != nil {
		images.Release(name.owner())
	}
}

// source is what machines of a template are made from. Its images are those that its
// snapshot was made with, if there is one, else those that its references name now.
func (t *templates) source(ctx context.Context, tmpl Template) (Source, error) {
	st, done := t.use(tmpl)
	defer done()
	src := Source{Shape: tmpl.Shape, Kit: t.supply.opts.Kit, Template: &tmpl}
	t.mu.Lock()
	src.Images = st.images
	t.mu.Unlock()
	if src.Images != nil || len(tmpl.Images) == 0 {
		return src, nil
	}
	images, err := t.resolve(ctx, tmpl)
	if err != nil {
		return src, fmt.Errorf("images of template %s: %w", tmpl.ID(), err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if st.images == nil {
		st.images = images
	}
	src.Images = st.images
	return src, nil
}

func (t *templates) resolve(ctx context.Context, tmpl Template) ([]SlotImage, error) {
	images := t.supply.opts.Images
	if images == nil {
		return nil, refuse(ReasonInvalid, nil, "the node has no images for templates")
	}
	owner := nameOf(tmpl).owner()
	found, err := t.supply.opts.Store.Find(ctx, tmpl)
	if err != nil {
		return nil, err
	}
	for _, set := range found {
		if pinned := pinAll(ctx, images, owner, set); pinned != nil && hasAll(pinned, tmpl.Images) {
			return pinned, nil
		}
	}
	resolved := make([]SlotImage, 0, len(tmpl.Images))
	for _, ref := range tmpl.Images {
		i, err := images.Resolve(ctx, owner, ref, tmpl.GuestOS)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", ref, err)
		}
		i.Ref = ref
		resolved = append(resolved, i)
	}
	return resolved, nil
}

// pinAll returns the images of a snapshot if all are still on the node, else nil.
func pinAll(ctx context.Context, images Images, owner string, set []SlotImage) []SlotImage {
	var pinned []SlotImage
	for _, want := range set {
		i, err := images.Pin(ctx, owner, want.Digest)
		if err != nil {
			return nil // to be pulled again, or made anew from what the tag is now
		}
		i.Ref = want.Ref
		pinned = append(pinned, i)
	}
	return pinned
}

// ensure returns the snapshot of a template, pinned, and builds it when it is missing.
func (t *templates) ensure(ctx context.Context, tmpl Template) (Source, Snapshot, bool, error) {
	st, done := t.use(tmpl)
	defer done()
	if err := t.waits(st, time.Now()); err != nil {
		return Source{}, nil, false, err
	}
	src, err := t.source(ctx, tmpl)
	var snap Snapshot
	built := false
	start := time.Now()
	step := recipe.StepPull
	if err == nil {
		step = recipe.StepSave // unless the recipe says which
		snap, built, err = t.supply.opts.Store.Ensure(ctx, src)
	}
	took := time.Since(start)
	t.mu.Lock()
	defer t.mu.Unlock()
	before := st.status
	switch {
	case err == nil:
		st.status.Phase, st.status.Key = TemplateReady, snap.Key()
		st.status.Step, st.status.Message, st.status.Output, st.status.RetryAt = "", "", "", time.Time{}
		st.retry = backoff{}
		if built && st.status.Build == 0 {
			st.status.Build = took // until SnapshotBuilt tells better
		}
	case ctx.Err() != nil: // says nothing about the template
	case overLimit(err): // nor does this: it is built when there is a slot
		st.status.Phase, st.status.Message = TemplatePending, "the host has as many macOS guests as it may run"
	default:
		st.failed(time.Now(), t.supply.opts.templates, step, err)
	}
	if st.status != before {
		t.supply.changed()
	}
	return src, snap, built, err
}

// waits is the error of the last build while the next one is not due: a pod that asks
// again does not make a broken template's commands run more often than they should.
func (t *templates) waits(st *templateState, now time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if st.status.Phase != TemplateFailed || !st.retry.waits(now) {
		return nil
	}
	return fmt.Errorf("the next try is in %s: %w", st.retry.until.Sub(now).Round(time.Second), st.err)
}

// failed notes why there is no snapshot.
func (st *templateState) failed(now time.Time, p pauses, step recipe.Step, err error) {
	if !st.retry.waits(now) { // several callers get the same error
		st.retry = st.retry.failed(now, p, err.Error())
	}
	st.err = err
	st.status.Phase, st.status.RetryAt = TemplateFailed, st.retry.until
	st.status.Step, st.status.Message, st.status.Output = string(step), err.Error(), ""
	if fault := (*recipe.StepError)(nil); errors.As(err, &fault) {
		st.status.Step, st.status.Message, st.status.Output = string(fault.Step), fault.Message, fault.Output
	}
}

// sync makes the given templates the targeted ones, and builds the snapshots that are
// due in the background. It returns when the next one is due; zero is never. Only the
// supervisor calls it.
func (t *templates) sync(targeted map[templateName]Template, now time.Time) (next time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, st := range t.states {
		if _, ok := targeted[nameOf(st.template)]; !ok && st.targeted {
			st.targeted = false
			if st.cancel != nil {
				st.cancel() // a pod that waits for the same snapshot keeps it being built
			}
			t.drop(st)
			t.supply.changed()
		}
	}
	for _, st := range t.states {
		t.drop(st) // those that only waited for their next try
	}
	t.slotWanted = false
	for _, tmpl := range targeted {
		st := t.state(tmpl)
		if !st.targeted {
			st.targeted = true
			t.supply.changed()
		}
		switch {
		case st.status.Phase == TemplateBuilding, st.status.Phase == TemplateReady && st.pin != nil:
		case st.retry.waits(now):
			next = earlier(next, st.retry.until)
		default:
			var room *reservation
			if look := tmpl.slots() > 0 && !st.looked; !look {
				var err error
				if room, err = t.slotFor(st); err != nil {
					continue
				}
			}
			st.status.Phase, st.status.Message = TemplateBuilding, ""
			st.users++
			ctx, cancel := context.WithCancel(t.supply.ctx)
			st.cancel = cancel
			t.supply.changed()
			t.supply.wg.Go(func() { defer cancel(); t.build(ctx, st, room) }) // the supervisor counts, so nobody has waited yet
		}
	}
	return next
}

// missing tells whether the snapshot has to be built and needs a slot for that. The
// template is pending again then, with its image pulled: that may take as long as the rest,
// and needs none.
func (t *templates) missing(ctx context.Context, st *templateState) bool {
	if st.template.slots() == 0 {
		return false
	}
	found, err := t.supply.opts.Store.Find(ctx, st.template)
	if err == nil && len(found) > 0 {
		t.mu.Lock()
		defer t.mu.Unlock()
		st.looked = true
		return false
	}
	_, err = t.source(ctx, st.template)
	t.mu.Lock()
	defer t.mu.Unlock()
	st.cancel = nil
	st.looked = err == nil
	st.status.Phase = TemplatePending
	if err != nil && ctx.Err() == nil {
		st.failed(time.Now(), t.supply.opts.templates, recipe.StepPull, err)
	}
	st.users--
	t.drop(st)
	t.supply.changed()
	return true
}

// slotFor takes the slot that the machine of a template's build needs. Without one the
// template stays pending. With mu held.
func (t *templates) slotFor(st *templateState) (*reservation, error) {
	room, err := t.supply.ledger.reserveBuild(st.template)
	if err == nil {
		return room, nil
	}
	before := st.status
	if ReasonOf(err) == ReasonOversized {
		st.failed(time.Now(), t.supply.opts.templates, recipe.StepSave, err)
	} else {
		t.slotWanted = true
		st.status.Phase, st.status.Message = TemplatePending, "it is built when a slot for a macOS guest is free: "+err.Error()
	}
	if st.status != before {
		t.supply.changed()
	}
	return nil, err
}

// build makes sure of the snapshot of a targeted template; room is the slot that it may
// have.
func (t *templates) build(ctx context.Context, st *templateState, room *reservation) {
	if room == nil && t.missing(ctx, st) {
		return
	}
	_, snap, _, err := t.ensure(ctx, st.template)
	if room != nil {
		if overLimit(err) {
			room.refused(err)
		}
		room.release()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	st.cancel = nil
	if err != nil && ctx.Err() != nil {
		st.status.Phase = TemplatePending // cut short: nobody wanted it any more, or again
	}
	if err == nil {
		if st.pin != nil {
			st.pin.Release()
		}
		st.pin = snap
		if t.closed {
			st.pin = nil
			snap.Release()
		}
	}
	st.users--
	t.drop(st)
	t.supply.changed()
}

// restored and restoreFailed tell how restores from a template's snapshot end.
func (t *templates) restored(tmpl Template) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if st := t.states[nameOf(tmpl)]; st != nil {
		st.breaker = breaker{}
	}
}

func (t *templates) restoreFailed(tmpl Template, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	st := t.states[nameOf(tmpl)]
	if st == nil {
		return
	}
	st.breaker = st.breaker.failed(time.Now(), t.supply.opts.templates, err.Error())
	if errors.Is(err, vm.ErrSnapshotInvalid) && st.status.Phase == TemplateReady {
		st.status.Phase = TemplatePending // it was quarantined: to be built anew
		if st.pin != nil {
			st.pin.Release()
			st.pin = nil
		}
	}
	t.supply.changed()
}

// gate tells what stands between a template's pools and their next entry, and until
// when; zero is until something changes.
func (t *templates) gate(tmpl Template, now time.Time) (gate, time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	st := t.states[nameOf(tmpl)]
	switch {
	case st == nil || st.status.Phase == TemplatePending:
		message := "the snapshot of the template has to be built"
		if st != nil && st.status.Message != "" {
			message += "; " + st.status.Message
		}
		return gate{reason: SkipSnapshotNotReady, message: message}, time.Time{}
	case st.status.Phase == TemplateBuilding:
		return gate{reason: SkipSnapshotNotReady, message: "the snapshot of the template is being built"}, time.Time{}
	case st.status.Phase == TemplateFailed:
		return gate{reason: SkipSnapshotNotReady, message: "the snapshot of the template could not be built: " + st.status.Message}, st.status.RetryAt
	case st.breaker.open(now):
		b := st.breaker
		return gate{reason: SkipBackoff, message: fmt.Sprintf("%d machines of the template in a row could not be restored: %s", b.failures, b.backoff.message)}, b.backoff.until
	}
	return gate{trial: st.breaker.halfOpen(now)}, time.Time{}
}

// list returns the statuses of targeted templates, sorted.
func (t *templates) list() []TemplateStatus {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []TemplateStatus
	for _, st := range t.states {
		if st.targeted {
			all = append(all, st.status)
		}
	}
	slices.SortFunc(all, func(a, b TemplateStatus) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Revision, b.Revision))
	})
	return all
}

// SnapshotBuilt tells the supply what the store measured: it is for the store's
// events. template is "namespace/name", empty for a base; build is all of it, save the
// save in it.
func (s *Supply) SnapshotBuilt(template, key string, build, save time.Duration) {
	t := s.templates
	id := template
	if id == "" {
		build = 0 // only templates' builds are measured, but every save
	}
	t.mu.Lock()
	for _, st := range t.states {
		// The event comes before Ensure returns, when the key is not known yet.
		if id != "" && st.template.ID() == id && (st.status.Key == key || st.status.Key == "" && st.status.Phase == TemplateBuilding) {
			st.status.Key, st.status.Build, st.status.Save = key, build, save
		}
	}
	t.mu.Unlock()
	if build > 0 {
		s.opts.Observer.Sampled(Sample{Metric: MetricColdTemplateBuild, Duration: build, Template: id})
	}
	if save > 0 {
		s.opts.Observer.Sampled(Sample{Metric: MetricSnapshotSave, Duration: save, Template: id})
	}
}

// SnapshotGone tells the supply that a snapshot was taken out of use without a restore
// from it having failed: it is for the store's events. A template that is targeted has it
// built anew; others have when they are asked for.
func (s *Supply) SnapshotGone(key string) {
	t := s.templates
	var pins []Snapshot
	t.mu.Lock()
	for _, st := range t.states {
		if st.status.Key != key || st.status.Phase != TemplateReady {
			continue
		}
		st.status.Phase = TemplatePending
		if st.pin != nil {
			pins = append(pins, st.pin)
			st.pin = nil
		}
	}
	t.mu.Unlock()
	for _, p := range pins {
		p.Release()
	}
	s.changed()
}

// close drops the pins, and the images of templates.
func (t *templates) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for _, st := range t.states {
		if st.pin != nil {
			st.pin.Release()
			st.pin = nil
		}
		if images := t.supply.opts.Images; images != nil {
			images.Release(nameOf(st.template).owner())
		}
	}
}

// earlier returns the earlier of two times, of which zero is never. Pure.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
