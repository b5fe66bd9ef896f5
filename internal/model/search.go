package model

import (
	"fmt"
	"strings"
)

// Result is what a search has seen.
type Result struct {
	States, Steps, Depth int

	// Broken is the shortest way to a state that breaks a promise, and which one; empty if there is none.
	Broken []string
	Err    error

	// Stuck is the way to a state from which what is stored can never be finished, though nothing fails any more.
	Stuck []string
}

// Search visits all that can happen, breadth first, and stops at the first promise that is broken. With liveness it checks,
// too, that from every state the work can be finished without another fault.
func Search(r Rules, b Bounds, liveness bool) Result {
	m := machine{r, b}
	var res Result
	index := map[State]int32{{}: 0}
	states := []State{{}}
	type origin struct {
		from int32
		name string
	}
	origins := []origin{{-1, ""}}
	depth := []int{0}
	var good [][]int32 // edges, backwards
	good = append(good, nil)
	way := func(at int32, last string) []string {
		var steps []string
		if last != "" {
			steps = append(steps, last)
		}
		for ; at > 0; at = origins[at].from {
			steps = append([]string{origins[at].name}, steps...)
		}
		return steps
	}
	for at := 0; at < len(states); at++ {
		for _, step := range m.steps(states[at]) {
			res.Steps++
			if step.Err != nil {
				res.States, res.Broken, res.Err = len(states), way(int32(at), step.Name), step.Err //nolint:gosec // far fewer
				return res
			}
			to, known := index[step.To]
			if !known {
				to = int32(len(states)) //nolint:gosec // far fewer
				index[step.To] = to
				states = append(states, step.To)
				origins = append(origins, origin{int32(at), step.Name}) //nolint:gosec // far fewer
				depth = append(depth, depth[at]+1)
				good = append(good, nil)
				res.Depth = max(res.Depth, depth[at]+1)
			}
			if step.Good && liveness {
				good[to] = append(good[to], int32(at)) //nolint:gosec // far fewer
			}
		}
	}
	res.States = len(states)
	if liveness {
		if at := stuck(states, good, b.Sockets); at >= 0 {
			res.Stuck = way(at, "")
		}
	}
	return res
}

// stuck returns a state from which no good steps lead to one where all is finished, or -1. States in which no socket is left
// that could register are passed over: somebody has to be there.
func stuck(states []State, good [][]int32, sockets int) int32 {
	reaches := make([]bool, len(states))
	var todo []int32
	for i := range states {
		if states[i].done() || nobodyLeft(&states[i], sockets) {
			reaches[i] = true
			todo = append(todo, int32(i)) //nolint:gosec // far fewer
		}
	}
	for len(todo) > 0 {
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, from := range good[at] {
			if !reaches[from] {
				reaches[from] = true
				todo = append(todo, from)
			}
		}
	}
	for i := range states {
		if !reaches[i] {
			return int32(i) //nolint:gosec // far fewer
		}
	}
	return -1
}

// nobodyLeft reports whether all sockets have ended and no further one may register.
func nobodyLeft(s *State, sockets int) bool {
	for _, c := range s.sessions[:sockets] {
		if c.node == 0 || c.name != 0 {
			return false
		}
	}
	return true
}

// String describes the result for people.
func (r Result) String() string {
	text := fmt.Sprintf("%d states, %d steps, depth %d", r.States, r.Steps, r.Depth)
	switch {
	case r.Err != nil:
		text += fmt.Sprintf(": %v: %s", r.Err, strings.Join(r.Broken, "; "))
	case r.Stuck != nil:
		text += ": stuck: " + strings.Join(r.Stuck, "; ")
	}
	return text
}
