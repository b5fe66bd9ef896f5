package redisbroker

import (
	"fmt"
	"strconv"
)

// reply reads what a script returned, value by value. A value that is not there or is of another type
// is an error, kept until asked for.
type reply struct {
	values []any
	err    error
}

func replyOf(v any) *reply {
	values, ok := v.([]any)
	if !ok {
		return &reply{err: fmt.Errorf("redis answered %T where a list was expected", v)}
	}
	return &reply{values: values}
}

func (r *reply) next() any {
	if len(r.values) == 0 {
		if r.err == nil {
			r.err = fmt.Errorf("redis's answer is too short")
		}
		return nil
	}
	v := r.values[0]
	r.values = r.values[1:]
	return v
}

func (r *reply) more() bool { return r.err == nil && len(r.values) > 0 }

func (r *reply) text() string {
	v := r.next()
	s, ok := v.(string)
	if !ok && v != nil && r.err == nil {
		r.err = fmt.Errorf("redis answered %T where a text was expected", v)
	}
	return s
}

func (r *reply) number() int64 {
	switch v := r.next().(type) {
	case int64:
		return v
	case string:
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil && r.err == nil {
			r.err = fmt.Errorf("redis answered %q where a number was expected", v)
		}
		return n
	case nil:
	default:
		if r.err == nil {
			r.err = fmt.Errorf("redis answered %T where a number was expected", v)
		}
	}
	return 0
}
