// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Kind is what an action does.
type Kind string

// The kinds of actions.
const (
	CreatePod       Kind = "create pod"
	DeletePod       Kind = "delete pod"
	ScalePool       Kind = "scale pool"
	ChangeTemplate  Kind = "change template"
	KillNode        Kind = "kill -9 node"
	TerminateNode   Kind = "terminate node"
	StartNode       Kind = "start node"
	KillMachine     Kind = "kill -9 machine"
	KillController  Kind = "kill -9 controller"
	StartController Kind = "start controller"
	KillAPI         Kind = "kill -9 API server"
	StartAPI        Kind = "start API server"
	// Rest is a quiet point: everything is up, nothing is disturbed until all has
	// settled, and the invariants are checked.
	Rest Kind = "rest"
)

// Program is what a pod runs. Each says "start" and then counts lines.
type Program string

// The programs.
const (
	Counter  Program = "counter"  // counts until it is told to end
	Stubborn Program = "stubborn" // as Counter, and has to be killed
	Brief    Program = "brief"    // counts to BriefLines and succeeds
	Failing  Program = "failing"  // counts to BriefLines and fails with FailingCode
)

const (
	// BriefLines is how far a program counts that ends by itself.
	BriefLines = 20
	// FailingCode is the exit code of Failing.
	FailingCode = 3
)

// Templates are the names of the templates, and of the pool of each. A pod of none is of a
// plain image.
var Templates = []string{"alpha", "beta"}

// Bounds of what the cluster has to hold at once: two cores emulate the machines.
const (
	maxPods     = 6
	maxReplicas = 2
	// restEvery is how many actions there are between two quiet points.
	restEvery = 40
	// A part that is down stays so for at most this many actions.
	nodeDownFor, apiDownFor, controllerDownFor = 4, 3, 8
)

// Action is one decision.
type Action struct {
	Number int
	Kind   Kind
	// Pod is the pod's name.
	Pod     string
	Program Program
	// Always is the restart policy of a new pod, Template its template or empty.
	Always   bool
	Template string
	// Force deletes without grace.
	Force bool
	// Replicas of Template's pool.
	Replicas int
	// Revision of Template.
	Revision int
	// Pick chooses among what there is when it comes to that.
	Pick uint32
	// Pause comes afterwards.
	Pause time.Duration
}

func (a Action) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d: %s", a.Number, a.Kind)
	switch a.Kind {
	case CreatePod:
		policy, of := "Never", "a plain image"
		if a.Always {
			policy = "Always"
		}
		if a.Template != "" {
			of = "template " + a.Template
		}
		fmt.Fprintf(&b, " %s (%s, %s, of %s)", a.Pod, a.Program, policy, of)
	case DeletePod:
		fmt.Fprintf(&b, " %s", a.Pod)
		if a.Force {
			b.WriteString(" by force")
		}
	case ScalePool:
		fmt.Fprintf(&b, " %s to %d", a.Template, a.Replicas)
	case ChangeTemplate:
		fmt.Fprintf(&b, " %s to revision %d", a.Template, a.Revision)
	default: // there is nothing to add
	}
	fmt.Fprintf(&b, ", then %v", a.Pause)
	return b.String()
}

// Planner decides what is done next. Pure: the same seed gives the same actions.
type Planner struct {
	random *rand.Rand
	number int
	pods   []string // created and not deleted
	made   int
	// revisions and replicas by the index of the template.
	revisions, replicas []int
	// Since when, in actions, a part is down; 0: it is up.
	nodeDown, apiDown, controllerDown int
	sinceRest                         int
}

// NewPlanner returns the planner of a seed. Everything is up, each template has revision 1 and
// a pool of one machine.
func NewPlanner(seed uint64) *Planner {
	p := &Planner{random: rand.New(rand.NewPCG(seed, 0x6368616f73))} //nolint:gosec // a test that can be repeated
	for range Templates {
		p.revisions, p.replicas = append(p.revisions, 1), append(p.replicas, 1)
	}
	return p
}

// Next is the next action.
func (p *Planner) Next() Action {
	p.number++
	p.sinceRest++
	for _, down := range []*int{&p.nodeDown, &p.apiDown, &p.controllerDown} {
		if *down > 0 {
			*down++
		}
	}
	a := Action{Number: p.number, Kind: p.choose(), Pick: p.random.Uint32(), Pause: time.Duration(50+p.random.IntN(1200)) * time.Millisecond}
	p.fill(&a)
	return a
}

// choose is the kind of the next action.
func (p *Planner) choose() Kind {
	resting := p.sinceRest > restEvery
	switch { // the API server first: the others ask it when they start
	case p.apiDown > apiDownFor, resting && p.apiDown > 0:
		return StartAPI
	case p.nodeDown > nodeDownFor, resting && p.nodeDown > 0:
		return StartNode
	case p.apiDown == 0 && (p.controllerDown > controllerDownFor || resting && p.controllerDown > 0):
		return StartController
	case resting:
		return Rest
	}
	type choice struct {
		kind   Kind
		weight int
	}
	var choices []choice
	add := func(weight int, kind Kind) {
		if weight > 0 {
			choices = append(choices, choice{kind, weight})
		}
	}
	add(4, KillMachine)
	if p.nodeDown == 0 {
		add(4, KillNode)
		add(2, TerminateNode)
	} else {
		add(8, StartNode)
	}
	if p.apiDown > 0 { // nobody can be asked for anything
		add(6, StartAPI)
	} else {
		add(2*(maxPods-len(p.pods)), CreatePod)
		add(min(2*len(p.pods), 6), DeletePod)
		add(3, ScalePool)
		add(1, ChangeTemplate)
		if p.nodeDown > 0 { // so that nodes start without one, too
			add(4, KillAPI)
		} else {
			add(1, KillAPI)
		}
		if p.controllerDown > 0 {
			add(3, StartController)
		}
	}
	if p.controllerDown == 0 {
		add(1, KillController)
	}
	total := 0
	for _, c := range choices {
		total += c.weight
	}
	n := p.random.IntN(total)
	for _, c := range choices {
		if n -= c.weight; n < 0 {
			return c.kind
		}
	}
	panic("unreachable: the weights add up")
}

// fill decides what else an action needs, and notes what it changes.
func (p *Planner) fill(a *Action) {
	switch a.Kind {
	case CreatePod:
		p.made++
		a.Pod = fmt.Sprintf("p%d", p.made)
		a.Program = []Program{Counter, Counter, Counter, Stubborn, Brief, Failing}[p.random.IntN(6)]
		a.Always = p.random.IntN(3) == 0
		if n := p.random.IntN(len(Templates) + 1); n < len(Templates) {
			a.Template = Templates[n]
		}
		p.pods = append(p.pods, a.Pod)
	case DeletePod:
		i := p.random.IntN(len(p.pods))
		a.Pod, a.Force = p.pods[i], p.random.IntN(4) == 0
		p.pods = slices.Delete(p.pods, i, i+1)
	case ScalePool:
		i := p.random.IntN(len(Templates))
		p.replicas[i] = (p.replicas[i] + 1 + p.random.IntN(maxReplicas)) % (maxReplicas + 1) // another number
		a.Template, a.Replicas = Templates[i], p.replicas[i]
	case ChangeTemplate:
		i := p.random.IntN(len(Templates))
		p.revisions[i]++
		a.Template, a.Revision = Templates[i], p.revisions[i]
	case KillNode, TerminateNode:
		p.nodeDown = 1
	case StartNode:
		p.nodeDown = 0
	case KillController:
		p.controllerDown = 1
	case StartController:
		p.controllerDown = 0
	case KillAPI:
		p.apiDown = 1
	case StartAPI:
		p.apiDown = 0
	case Rest:
		p.sinceRest = 0
	case KillMachine: // another may be made in its place, or not
	}
}
